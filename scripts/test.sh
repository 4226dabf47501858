#!/bin/bash
# The whole test suite: unit, property and simulation tests, and the tests of real processes against real clients.
# Arguments go to tap: options, or the files to run instead of all.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install-test-tools.sh
npm run --silent build

# Files named on the command line replace the default; .taprc leaves the process tests out, a glob given here does not.
files=('test/**/*.test.ts')
for argument in "$@"; do
  [[ $argument == -* ]] || files=()
done
# The checks before a commit look at few power failures and simulated runs, this at many.
export POWER_FAILURES="${POWER_FAILURES:-12}"
export SIMULATION_SECONDS="${SIMULATION_SECONDS:-15}"
export CRASH_EPOCHS="${CRASH_EPOCHS:-4}" CRASH_WRITES="${CRASH_WRITES:-2}"
# Each step of a process test has a deadline of its own; the limit for a whole file leaves room for a slow machine.
exec npx tap --timeout=3000 "${files[@]}" "$@"
