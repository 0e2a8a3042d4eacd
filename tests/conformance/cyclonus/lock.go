package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// turn is how long the lock is left to others between two cases.
const turn = 200 * time.Millisecond

// shared holds a shared lock on a file until unlock is called. Without a path
// there is nothing to lock.
func shared(path string) (unlock func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cluster: %w", err)
	}
	for {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return func() {
		_ = f.Close() // read only, so nothing is lost; it ends the lock
		time.Sleep(turn)
	}, nil
}
