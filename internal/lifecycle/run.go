// Package lifecycle runs a process: tasks that live and end together, signals,
// health, and the small HTTP servers that every component has. It owns when
// things start and stop, and nothing of what they do.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"sync"
	"syscall"
)

// Task is one long-lived part of a process. Run returns when ctx is done, or
// earlier with the error that ends the process.
type Task struct {
	Name string
	Run  func(ctx context.Context) error
}

// Run runs all tasks until the first of them ends or ctx is done, then cancels
// the others and waits for them. A task that returns before ctx is done ends
// the process, even without an error: nothing long-lived ends silently. The
// error names the task; the end of ctx is none.
func Run(ctx context.Context, tasks ...Task) error {
	parent := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	for _, task := range tasks {
		wg.Go(func() {
			err := task.Run(ctx)
			mu.Lock()
			defer mu.Unlock()
			if first == nil && ctx.Err() == nil {
				if err == nil {
					err = errors.New("ended by itself")
				}
				first = fmt.Errorf("%s: %w", task.Name, err)
			} else if first == nil && err != nil && !errors.Is(err, context.Canceled) && parent.Err() != nil {
				// A shutdown that went wrong is worth telling.
				first = fmt.Errorf("%s: while stopping: %w", task.Name, err)
			}
			cancel()
		})
	}
	wg.Wait()
	return first
}

// SignalContext is done when the process is asked to end (SIGTERM, SIGINT). A
// second signal ends the process at once.
func SignalContext(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(parent, syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
