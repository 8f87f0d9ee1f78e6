"""The built-in workloads, one file a tool: argv out, measurements in."""
