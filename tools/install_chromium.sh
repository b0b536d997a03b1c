#!/usr/bin/env bash
# Installs Chromium for the tests of the report's page, where this is possible (root on Debian or Ubuntu). A failure is
# not fatal: without a browser these tests are skipped with a message.
set -uo pipefail
command -v chromium >/dev/null && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "Chromium is not installed; its tests are skipped."; exit 0; }
export DEBIAN_FRONTEND=noninteractive
{ timeout 120 apt-get update && timeout 300 apt-get install -y --no-install-recommends chromium
} >/dev/null 2>&1 || echo "Chromium could not be installed; its tests are skipped."
exit 0
