"""A real Kubernetes cluster on the lab's nodes."""
