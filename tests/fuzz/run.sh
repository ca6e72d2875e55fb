#!/usr/bin/env bash
# run.sh [SECONDS]: fuzzes every target for SECONDS (60), starting from tests/fuzz/corpus; new inputs stay in build/fuzz/corpus.
# run.sh merge: makes tests/fuzz/corpus anew, the fewest inputs that reach what all of build/fuzz/corpus reaches.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v clang++ >/dev/null || { echo "fuzzing needs clang with libFuzzer: apt-get install clang lld libclang-rt-14-dev" >&2; exit 2; }
mkdir -p build
cmake -S tests --preset fuzz >build/fuzz.log || { cat build/fuzz.log; exit 1; }
cmake --build build/fuzz --target fuzz >>build/fuzz.log || { tail -50 build/fuzz.log; exit 1; }
targets="frame decode round_trip targets"
most=(-timeout=20 -rss_limit_mb=4096)
# Of `frame` as long as what has its checksum computed in three parts at once, and more; the others are slow.
length() { [[ $1 == frame ]] && echo -max_len=65536 || echo -max_len=4096; }
if [[ ${1:-60} == merge ]]; then
  for target in $targets; do
    mkdir -p build/fuzz/merged/$target
    rm -f build/fuzz/merged/$target/*
    # Edges alone, not how often each is taken: a twentieth of the files.
    build/fuzz/fuzz_$target "$(length $target)" "${most[@]}" -set_cover_merge=1 -use_counters=0 build/fuzz/merged/$target tests/fuzz/corpus/$target build/fuzz/corpus/$target \
      2>build/fuzz/merge_$target.log
    mkdir -p tests/fuzz/corpus/$target
    rm -f tests/fuzz/corpus/$target/*
    cp build/fuzz/merged/$target/* tests/fuzz/corpus/$target/
  done
  du -sh --apparent-size tests/fuzz/corpus
  exit
fi
status=0
for target in $targets; do
  mkdir -p build/fuzz/corpus/$target build/fuzz/crashes tests/fuzz/corpus/$target
  log=build/fuzz/$target.log
  dictionary=()
  [[ -f tests/fuzz/$target.dict ]] && dictionary=(-dict=tests/fuzz/$target.dict)
  if build/fuzz/fuzz_$target "$(length $target)" "${most[@]}" "${dictionary[@]}" -max_total_time="${1:-60}" -print_final_stats=1 \
    -artifact_prefix=build/fuzz/crashes/$target- build/fuzz/corpus/$target tests/fuzz/corpus/$target >$log 2>&1; then
    awk -v t=$target '/number_of_executed_units/ {n = $2} /cov: / {c = $4} END {print t ": " n " executions, no finding, coverage " c}' $log
  else
    status=1
    tail -40 $log
    echo "$target: a finding. Run it again: build/fuzz/fuzz_$target $(sed -n 's/.*Test unit written to //p' $log | tail -1)"
  fi
done
exit $status
