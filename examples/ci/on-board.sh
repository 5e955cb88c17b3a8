#!/bin/sh
# Runs the golden runs on a board. Only trouble with the board is tried again: 7 (not available)
# and 8 (fault, or silent). A regression and everything else ends at once with its own exit code;
# what regressed, and nothing else, is bisected before it does.
# Every attempt leaves its own reports, also where --timeout or a signal cuts it short. All of it
# together takes MINUTES at most: keep the timeout of the job above that.
#
#   on-board.sh TARGET [ATTEMPTS] [PAUSE] [MINUTES]
target=$1
attempts=${2:-3}
pause=${3:-60}
end=$(($(date +%s) + ${4:-45} * 60))
attempt=1

# The seconds that are left, of $1 at most.
left() {
  seconds=$((end - $(date +%s)))
  [ "$seconds" -lt "$1" ] || seconds=$1
  echo "$seconds"
}

while :; do
  nmtool test --hw "$target" --golden golden --timeout "$(left 900)s" --force --json \
    --junit "board-$attempt.xml" --markdown "board-$attempt.md" > "board-$attempt.json"
  code=$?
  [ ! -f "board-$attempt.md" ] || cat "board-$attempt.md"
  case $code in
    7) echo "::notice::$target is not available (attempt $attempt of $attempts)" ;;
    8) echo "::warning::$target failed while it ran (attempt $attempt of $attempts)" ;;
    *) break ;;
  esac
  [ "$attempt" -lt "$attempts" ] && [ "$(left 900)" -gt "$((pause + 60))" ] || break
  attempt=$((attempt + 1))
  sleep "$pause"
done
if [ "$code" -eq 0 ] && [ "$attempt" -gt 1 ]; then
  echo "::warning::$target passed only on attempt $attempt"
fi
if [ "$code" -ge 124 ] || ! grep -qs '"status": "regression"' "board-$attempt.json"; then
  exit "$code"
fi
regressed='import json, sys
for case in json.load(open(sys.argv[1]))["cases"]:
    if case["status"] == "regression":
        print(case["case"])'
python3 -c "$regressed" "board-$attempt.json" | while read -r golden; do
  [ "$(left 600)" -gt 60 ] || { echo "::warning::no time left to bisect $golden"; continue; }
  replay=replay-$(echo "${golden#golden/}" | tr / -)
  nmtool bisect "$golden" "$target" -o "$replay" --force --timeout "$(left 600)s" < /dev/null
done
exit "$code"
