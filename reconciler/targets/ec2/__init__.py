"""EC2: what an instance has, and the calls that change it, in a process of their own."""
