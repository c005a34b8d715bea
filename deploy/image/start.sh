#!/bin/sh
# Starts node-network in a container that is not privileged: runtimes make /proc/sys read-only
# there, and allow no mount below /proc. The node's /proc/sys/net, which shows the namespace of
# whoever opens a file, is mounted beside it, and put into its place from inside.
# Other settings of the node stay read-only.
set -eu
beside=${NODE_NETWORK_HOST_ROOT:-}/proc/sys/net
if [ ! -w /proc/sys/net ] && [ "$beside" != /proc/sys/net ] && [ -d "$beside" ]; then
    mount --bind "$beside" /proc/sys/net
fi
exec /opt/node-network/venv/bin/node-network "$@"
