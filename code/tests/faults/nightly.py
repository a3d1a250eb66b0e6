"""Whether the full counts are asked for: `pytest --hypothesis-profile=nightly code/tests/faults`.

Imported by tests only: conftest.py is read before the option is.
"""

import hypothesis

NIGHTLY = hypothesis.settings.get_current_profile_name() == "nightly"
