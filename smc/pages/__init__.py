"""Pages about models: HTML that needs nothing but itself."""

from smc.pages.model import artifact_page, module_page

__all__ = ["artifact_page", "module_page"]
