# shellcheck shell=sh
# A shell in which this is set runs every wrapped command in the clear: that should not go unnoticed.
if [ "${UWT_DEV_PASSTHROUGH:-}" = 1 ] && [ -t 2 ]; then
    echo "uwt: UWT_DEV_PASSTHROUGH=1 is set: commands run in the clear in this shell; unset it to go through Tor" >&2
fi
