"""What `make check` says of known vulnerabilities in the installed packages: a report by pip-audit, which fails nothing.

It asks PyPI's service. Where that is away or knows nothing of a package, it says so: nothing found is not nothing there.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PATIENCE = 120
"""Seconds for all of it: about 200 packages are looked up one by one."""
AUDIT = [str(Path(sys.executable).with_name("pip-audit")), "--local", "--format", "json", "--progress-spinner", "off"]


def main() -> int:
    """Print the report. Returns 0, whatever it says."""
    try:
        done = subprocess.run([*AUDIT, "--timeout", "5"], capture_output=True, text=True, timeout=PATIENCE)
        print("pip-audit:", told(json.loads(done.stdout)))
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"pip-audit: no report: {error}")
    except ValueError:
        print(f"pip-audit: no report: {(done.stderr.strip() or 'it said nothing').splitlines()[-1][:200]}")
    return 0


def told(found: dict[str, Any]) -> str:
    """A line for each vulnerability, below how many packages were looked up."""
    packages = found["dependencies"]
    known = [one for one in packages if "vulns" in one]
    lines = [
        f"  {one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for one in known
        for flaw in one["vulns"]
    ]
    missing = len(packages) - len(known)
    away = f"; the service knows nothing of {missing} others, or is away" if missing else ""
    return "\n".join([f"{len(lines)} known vulnerabilities in {len(known)} packages{away}", *lines])


if __name__ == "__main__":
    sys.exit(main())
