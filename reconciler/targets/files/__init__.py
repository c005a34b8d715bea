"""Files of the host: what is installed, what configures its network, mounts."""
