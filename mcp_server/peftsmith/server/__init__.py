"""The MCP server: peftsmith's operations as tools, its documents as resources, and two prompts.

Knows: the MCP SDK, transports, and how results and errors are put on the wire.
Does not know: how anything is done (operations/).
"""
