"""An MCP server: models buy and edit images with its tools, within a budget (extra `mcp`)."""
