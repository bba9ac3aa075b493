#!/bin/sh
# Install a package of Debian's: the data set, for machines that reach a package mirror but not the data set's, or a
# browser, for the tests that look at pages.
set -eu
package=$1
if ! command -v apt-get >/dev/null; then
    echo "error: this is no Debian system, which would have a package $package" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "error: only root may install it; run this, then try again: sudo apt-get install $package" >&2
    exit 1
fi
echo "Installing Debian's package $package."
apt-get update -qq
apt-get install -y -qq --no-install-recommends "$package"
