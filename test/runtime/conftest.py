"""How hypothesis searches here."""

import os

from hypothesis import settings

# No deadline: on a busy machine the time of an example says nothing. The same examples every
# time: `make test` must not depend on luck; HYPOTHESIS_PROFILE=search looks further.
settings.register_profile("same", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("search", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
