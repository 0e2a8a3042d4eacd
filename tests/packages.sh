#!/usr/bin/env bash
# Installs the Debian packages that packet-level tests use, without starting any as
# a service. A quick no-op when they are there; without root it says what is missing
# and goes on.
set -euo pipefail
want=(iproute2 iptables nftables containernetworking-plugins)
# The back ends of tests/differential, and what attacks the sidecar slowly there.
want+=(nginx-light nodejs python3 gunicorn slowhttptest)
missing=()
for p in "${want[@]}"; do
  dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "packet-level tests need these Debian packages, and installing needs root: ${missing[*]}" >&2
  exit 0
fi
echo "installing Debian packages: ${missing[*]}" >&2
if [ ! -e /usr/sbin/policy-rc.d ]; then
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
