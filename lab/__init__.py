"""A VPC on one machine: EC2, instance metadata and a packet fabric, in namespaces.

An ENI-based CNI cannot be tried without AWS; here one command can. The fabric enforces what a VPC
enforces, and that is what makes tests in it honest.
"""
