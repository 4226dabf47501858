# Reads tap's raw output of whole test files and prints `N passed, N failed` and, where it applies, `, N skipped`.
#
# What counts: every test that stands directly in a test file (indented once), and every file that failed without
# naming a failed test: one that crashed, timed out or had no test. TODO counts as skipped.
# Exit status: 0 when at least one test passed and none failed; with -v strict=1 a skip is a failure too.

# Diagnostics are YAML between --- and ...; what they quote is no result.
/^ *---$/ { quoted = 1 }
/^ *\.\.\.$/ { quoted = 0; next }
# tap reports a file that ran out of time once more at the end, and names it here.
quoted && late && /^  expired: / && ($2 in failedFiles) { failed--; late = 0 }
quoted { next }

/^ *(not )?ok [0-9]+/ {
  indent = match($0, /[^ ]/) - 1
  bad = $1 == "not"
  spared = $0 ~ /# (SKIP|TODO)/
  if (indent == 4) {
    if (spared) skipped++
    else if (bad) { failed++; failedHere++ }
    else passed++
  } else if (indent == 0) {
    late = bad && /- timeout!$/
    if (spared) skipped++
    else if (bad && !failedHere) failed++
    if (bad) failedFiles[$5] = 1
    failedHere = 0
  }
}

END {
  printf "%d passed, %d failed", passed, failed
  if (skipped) printf ", %d skipped", skipped
  printf "\n"
  exit (passed && !failed && !(strict && skipped)) ? 0 : 1
}
