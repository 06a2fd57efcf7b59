#!/usr/bin/env bash
# nvcc's launcher: runs the command and reads ptxas' report. A kernel of a folder sm90 that spills registers, or whose
# wgmma ptxas serialises (C75xx; C7519 is harmless and always there), fails the build: it is correct and several times
# too slow. The report is kept beside the object as FILE.ptxas.
set -uo pipefail
output=  source=  previous=  for_speed=1
for argument in "$@"; do
  [ "$previous" != -o ] || output=$argument
  case "$argument" in
    *.cu) source=$argument ;;
    -DTESSERA_RACECHECK) for_speed=0 ;;
  esac
  previous=$argument
done
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$@" 2> "$log"
status=$?
# What is not ptxas' own accounting is for the reader.
grep -Ev "^ptxas info|^ *[0-9]+ bytes stack frame|^$" "$log" >&2
if [ "$status" != 0 ] || [ -z "$output" ]; then exit "$status"; fi
cp "$log" "$output.ptxas"
case "$source" in *sm90*) ;; *) exit 0 ;; esac
[ "$for_speed" = 1 ] || exit 0
# A producer warp may spill a little outside every loop: a kernel's allowance stands in its source as
#   // ptxas-spill-bytes: N
allowed=$(sed -n 's|^// ptxas-spill-bytes: \([0-9]*\).*|\1|p' "$source")
awk -v allowed="${allowed:-0}" -v source="$source" '
  /Compiling entry function|Function properties for/ { kernel = $0 }
  /bytes spill stores/ {
    for (i = 1; i <= NF; ++i) if ($i == "bytes" && $(i + 1) == "spill" && $(i + 2) ~ /stores/) bytes = $(i - 1)
    if (bytes + 0 > allowed + 0) { print source ": " bytes " bytes of spills (" allowed " allowed) in " kernel; bad = 1 }
  }
  /C75[0-9][0-9]/ && !/C7519/ { print source ": " $0; bad = 1 }
  END { exit bad }' "$log" >&2 || { rm -f "$output"; exit 1; }
