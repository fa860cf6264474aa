#!/bin/sh
# Make sure that mosquitto and redis-server are here for the tests; as root, install what is missing.
# libfaketime lets the soak move Redis' clock: nice to have, so its absence stops nothing.
# Debian would start what it installs as a system daemon: policy-rc.d tells it not to.
set -eu
PATH="$PATH:/usr/sbin:/usr/local/sbin"

missing=""
command -v mosquitto >/dev/null 2>&1 || missing="$missing mosquitto"
command -v redis-server >/dev/null 2>&1 || missing="$missing redis-server"
wanted=""
for file in /usr/lib/*/faketime/libfaketimeMT.so.1; do
  [ -e "$file" ] || wanted="libfaketime"
done
[ -n "$missing$wanted" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  [ -n "$missing" ] || exit 0
  echo "The tests need$missing: install them (Debian, Ubuntu: sudo apt-get install$missing)." >&2
  exit 1
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
echo "installing$missing $wanted for the tests" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
# shellcheck disable=SC2086 - one word a package
[ -z "$missing" ] || apt-get install -y -qq --no-install-recommends $missing >/dev/null
[ -z "$wanted" ] || apt-get install -y -qq --no-install-recommends "$wanted" >/dev/null ||
  echo "libfaketime is not to be had: soaks leave out clocks that jump" >&2
