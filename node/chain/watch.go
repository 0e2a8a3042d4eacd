package chain

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long the folders must be quiet before they are looked at:
// writers often do several steps.
const settle = 50 * time.Millisecond

// Run installs the plugin, inserts the entry and repairs both until ctx ends.
// It takes nothing out. What goes wrong is logged once and shown by State; it is
// tried again for ever, because the primary plugin may come later. Looked, which
// may be nil, hears the outcome of each look.
func (m *Manager) Run(ctx context.Context, looked func(error)) error {
	if err := os.MkdirAll(m.ConfDir, 0o755); err != nil {
		return fmt.Errorf("make the network configurations' folder: %w", err)
	}
	if err := os.MkdirAll(m.BinDir, 0o755); err != nil {
		return fmt.Errorf("make the plugins' folder: %w", err)
	}
	// Without inotify there are no events: a nil channel, and the ticker remains.
	var events <-chan fsnotify.Event
	var failures <-chan error
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		m.Log.Warn("the cni folders can't be watched; they are looked at regularly", "error", err, "interval", m.Interval)
	} else {
		defer watcher.Close()
		events, failures = watcher.Events, watcher.Errors
	}
	ticker := time.NewTicker(m.Interval)
	defer ticker.Stop()
	quiet := time.NewTimer(0)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			if !strings.HasPrefix(filepath.Base(e.Name), temporary) {
				quiet.Reset(settle)
			}
			continue
		case err := <-failures:
			m.Log.Warn("watching the cni folders", "error", err)
		case <-ticker.C:
		case <-quiet.C:
		}
		if watcher != nil {
			// Again each time: a folder that was made anew is another one.
			for _, dir := range []string{m.ConfDir, m.BinDir} {
				if err := watcher.Add(dir); err != nil {
					m.Log.Debug("watch", "dir", dir, "error", err)
				}
			}
		}
		err := m.Ensure()
		m.report(err)
		if looked != nil {
			looked(err)
		}
	}
}

// report logs a problem when it is news.
func (m *Manager) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	m.mu.Lock()
	news := text != m.reported
	m.reported = text
	m.mu.Unlock()
	switch {
	case !news:
	case err != nil:
		m.Log.Error("hauberk-cni is not in the chain; new pods are not protected", "error", err)
	default:
		m.Log.Info("hauberk-cni is in the chain", "file", m.State().File)
	}
}
