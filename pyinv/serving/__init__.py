"""A web service that inverts the images of many clients in the lanes of one engine.

``pyinv serve`` runs it; ``create_app`` makes the ASGI application for another server. It needs the
extra ``pyinv[serve]``.
"""

from pyinv.errors import DependencyError
from pyinv.extras import install_command

try:
    from pyinv.serving.app import create_app
    from pyinv.serving.limits import Limits
except ModuleNotFoundError as error:
    raise DependencyError(f"the service needs {error.name}: {install_command('serve')}") from None

__all__ = ["Limits", "create_app"]
