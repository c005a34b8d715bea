"""What decides, shared by all domains: values in, values out."""
