"""What the node-local IPAM decides: demand, growth, release, quarantine, EC2 actions.

Pure: what EC2 showed and what is recorded comes in, a plan of EC2 actions comes out. No call is
made here, no clock read, and nothing is known of the kernel.
"""
