"""What holds for all tests."""

from __future__ import annotations

import hypothesis

# No time limit for an example: on a busy machine that is a test of the machine. A failure prints how to repeat it.
hypothesis.settings.register_profile("omniq", deadline=None, print_blob=True)
hypothesis.settings.load_profile("omniq")
