"""A new policy's file, from the template that ships with the policies.

For `python -m sim policies new NAME`; what it writes works as it stands and passes `policies check`.
"""

from __future__ import annotations

import re
from pathlib import Path

from sim.common.errors import ConfigError, PolicyError
from sim.policy.loader import policies_folder

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*")


def new_policy(name: str, folder: Path) -> Path:
    """Write `folder`/NAME.py, a policy that works, and return its path.

    Raises ConfigError: a name that no policy can have, a file that is there already or that cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"'{name}' cannot be a policy's name; use small letters, digits and dashes, as in my-policy")
    template = policies_folder() / "_template.py"
    try:
        text = template.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyError(
            f"{template}: cannot read the template ({error.strerror}); install the project again"
        ) from None
    path = folder / f"{name.replace('-', '_')}.py"
    class_name = "".join(word.capitalize() for word in re.split("[-_]", name))
    text = text.replace("class Template(Policy)", f"class {class_name}(Policy)")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path}: there already; choose another name, or move it away") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the policy ({error.strerror})") from None
    return path
