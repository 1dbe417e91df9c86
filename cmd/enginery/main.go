// Enginery is the command for nodes, validators and reviewers: it gets a node the engine versions that it needs, verified, and runs them.
//
// docs/operators.md is the manual.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	os.Exit(execute(ctx, os.Args[1:]))
}
