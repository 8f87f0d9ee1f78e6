"""tare: measures what isolation costs. The harness: model, interfaces, suite, plan, runner, store, command line."""
