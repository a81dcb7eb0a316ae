"""What holds for every test."""

from hypothesis import settings

settings.register_profile("fairlead", deadline=None)  # how long an example takes says what else the machine does
settings.load_profile("fairlead")
