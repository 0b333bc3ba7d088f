#!/usr/bin/env bash
# Checks the types: the repository first, then every service by itself (they share module names).
#
# Usage: scripts/check-types.sh
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
no_arguments "$@"

failed=0
scripts/uv run --frozen mypy shared scripts tests || failed=1
for service in services/*/; do
  name=$(basename "$service")
  echo "services/$name"
  MYPYPATH=services/$name scripts/uv run --frozen mypy --cache-dir "${MYPY_CACHE_DIR:-.mypy_cache}/$name" "services/$name" || failed=1
done
exit "$failed"
