"""The gradient audit: every op and every layer, looked at by every method that can tell a wrong gradient."""
