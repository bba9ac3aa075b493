#!/bin/sh
# Install Fashion-MNIST from Debian's own package, for machines that reach a package mirror but not the data set's.
set -eu
if ! command -v apt-get >/dev/null; then
    echo "error: this is no Debian system; see the sources named above" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "error: run this, then make again: sudo apt-get install dataset-fashion-mnist" >&2
    exit 1
fi
echo "Installing Debian's package dataset-fashion-mnist."
apt-get update -qq
apt-get install -y -qq --no-install-recommends dataset-fashion-mnist
