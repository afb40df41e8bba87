"""A cluster of hosts on one machine: network namespaces on a bridge, an sshd in each. The command is scripts/cluster.

Standard library only: it runs before anything is installed.
"""
