"""The SDK's data, read once by a process; each of its sessions would parse it anew.

That was a third of a lab's start. Moto opens sessions as it is imported, so this comes before it.
"""

from __future__ import annotations

import functools

import botocore.session

botocore.session.create_loader = functools.cache(botocore.session.create_loader)
