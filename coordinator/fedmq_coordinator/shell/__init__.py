"""Impure: the asyncio service, the store, the HTTP API."""
