#!/bin/sh
# Runs the golden runs on a board. Only trouble with the board is tried again: 7 (not available)
# and 8 (fault, or silent). A regression and everything else ends at once with its own exit code.
# Every attempt leaves its own reports, also where --timeout or a signal cuts it short.
#
#   on-board.sh TARGET [ATTEMPTS] [PAUSE]
target=$1
attempts=${2:-3}
pause=${3:-60}
attempt=1
while :; do
  nmtool test --hw "$target" --golden golden --timeout 15m --force \
    --junit "board-$attempt.xml" --markdown "board-$attempt.md"
  code=$?
  case $code in
    7) echo "::notice::$target is not available (attempt $attempt of $attempts)" ;;
    8) echo "::warning::$target failed while it ran (attempt $attempt of $attempts)" ;;
    *) break ;;
  esac
  [ "$attempt" -lt "$attempts" ] || break
  attempt=$((attempt + 1))
  sleep "$pause"
done
if [ "$code" -eq 0 ] && [ "$attempt" -gt 1 ]; then
  echo "::warning::$target passed only on attempt $attempt"
fi
exit "$code"
