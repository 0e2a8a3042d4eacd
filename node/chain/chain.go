// Package chain keeps our plugin in the node's CNI configuration. It owns our
// entry in the conflists and the plugin's binary: puts them in, watches,
// repairs, and takes them out. Other people's entries and files are theirs: not
// one of their bytes changes, and none is lost.
//
// The active configuration is the one that the runtime picks, the first valid
// one in the order of file names. A list gets our entry at its end, in place. A
// configuration of a single plugin (X.conf) can't hold a chain: it becomes the
// list X-hauberk.conflist, and the original is kept as X.conf.hauberk, which no
// runtime loads, until Remove puts it back.
//
// The entry stays when the agent ends: without the agent no pod starts, rather
// than one that is not protected. Only Remove takes it out.
package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

const (
	convertedSuffix = "-hauberk.conflist"
	savedSuffix     = ".hauberk"
)

// Options configures a Manager.
type Options struct {
	Log *slog.Logger
	// ConfDir and BinDir are the runtime's folders; names.CNIConfDir and
	// names.CNIBinDir when empty.
	ConfDir, BinDir string
	// Source is the plugin's binary in the node agent's image.
	Source string
	// Socket is the agent's; written into the entry when it is not the usual one.
	Socket string
	// Interval is between looks when no event calls for one; 10 s when zero.
	Interval time.Duration
}

// State is how the chain was found last.
type State struct {
	File     string    `json:"file"` // the active configuration
	Present  bool      `json:"present"`
	Problem  string    `json:"problem,omitempty"`
	Repairs  int       `json:"repairs"` // since the agent's start, the first insertion aside
	Repaired time.Time `json:"repaired,omitzero"`
}

// Manager keeps the chain. Its methods are safe for concurrent use.
type Manager struct {
	Options
	entry []byte

	mu       sync.Mutex // held over work on files, too
	state    State
	inserted bool
	reported string // the last problem logged
}

// New returns a Manager, which has done nothing yet.
func New(o Options) (*Manager, error) {
	if o.Log == nil {
		return nil, errors.New("chain: no logger")
	}
	if o.ConfDir == "" {
		o.ConfDir = names.CNIConfDir
	}
	if o.BinDir == "" {
		o.BinDir = names.CNIBinDir
	}
	if o.Interval == 0 {
		o.Interval = 10 * time.Second
	}
	entry := struct {
		Type   string `json:"type"`
		Socket string `json:"socket,omitempty"`
	}{Type: names.CNIType}
	if o.Socket != names.CNISocket {
		entry.Socket = o.Socket
	}
	text, err := json.Marshal(entry)
	if err != nil {
		return nil, fmt.Errorf("chain: %w", err)
	}
	return &Manager{Options: o, entry: text}, nil
}

// State is how the chain was found last.
func (m *Manager) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Ensure makes the active configuration have our entry, once, and the binary be
// in place.
func (m *Manager) Ensure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.ensureBinary()
	if err == nil {
		var changed bool
		for range 5 {
			if changed, err = m.ensureEntry(); !errors.Is(err, errChanged) {
				break
			}
		}
		if changed && m.inserted {
			m.state.Repairs++
			m.state.Repaired = time.Now()
			m.Log.Warn("cni chain repaired: another program had changed it", "file", m.state.File)
		} else if changed {
			m.Log.Info("cni chain entry inserted", "file", m.state.File)
		}
	}
	m.state.Present = err == nil
	m.state.Problem = ""
	if err != nil {
		m.state.Problem = err.Error()
	} else {
		m.inserted = true
	}
	return err
}

func (m *Manager) ensureEntry() (changed bool, err error) {
	m.state.File = ""
	path, text, err := m.active()
	if err != nil {
		return false, err
	}
	m.state.File = path
	if !strings.HasSuffix(path, ".conflist") {
		return true, m.convert(path, text)
	}
	if base, ok := strings.CutSuffix(path, convertedSuffix); ok {
		for _, ext := range []string{".conf", ".json"} {
			newer, err := os.ReadFile(base + ext)
			if err != nil {
				continue
			}
			if _, err := parseSingle(newer); err == nil {
				return true, m.convert(base+ext, newer)
			}
		}
	}
	next, err := insert(text, m.entry)
	if err != nil {
		return false, fmt.Errorf("put hauberk-cni into %s: %w", path, err)
	}
	if bytes.Equal(next, text) {
		return false, nil
	}
	return true, replace(path, text, next)
}

// convert makes a list of the single configuration at path and puts the
// original aside.
func (m *Manager) convert(path string, text []byte) error {
	target := strings.TrimSuffix(path, filepath.Ext(path)) + convertedSuffix
	var next []byte
	old, err := os.ReadFile(target)
	switch {
	case err == nil:
		if next, err = reconvert(old, text, m.entry); err == nil && !bytes.Equal(next, old) {
			err = replace(target, old, next)
		}
	case errors.Is(err, fs.ErrNotExist):
		if next, err = convert(text, m.entry); err == nil {
			err = write(target, next, 0o644)
		}
	}
	if err != nil {
		return fmt.Errorf("make a chain of %s: %w", path, err)
	}
	m.state.File = target
	// The list sorts before the original, so that it is active from here on.
	if err := os.Rename(path, path+savedSuffix); err != nil {
		return fmt.Errorf("put %s aside: %w", path, err)
	}
	return syncDir(path)
}

// active is the configuration that the runtime uses. Files that are not valid
// are left alone, and named when there is nothing else.
func (m *Manager) active() (path string, text []byte, err error) {
	paths, err := m.files(".conf", ".conflist", ".json")
	if err != nil {
		return "", nil, err
	}
	var problems []error
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err == nil && strings.HasSuffix(path, ".conflist") {
			_, err = parseList(text)
		} else if err == nil {
			_, err = parseSingle(text)
		}
		if err == nil {
			return path, text, nil
		}
		problems = append(problems, fmt.Errorf("%s is not valid: %w", path, err))
	}
	return "", nil, errors.Join(append([]error{fmt.Errorf(
		"%s has no valid network configuration; is the primary CNI plugin installed?", m.ConfDir)}, problems...)...)
}

// files is the folder's files with one of the endings, in order of name.
func (m *Manager) files(endings ...string) ([]string, error) {
	entries, err := os.ReadDir(m.ConfDir)
	if err != nil {
		return nil, fmt.Errorf("read the network configurations: %w", err)
	}
	var paths []string
	for _, e := range entries { // sorted by name
		if e.IsDir() || strings.HasPrefix(e.Name(), temporary) || !slices.Contains(endings, filepath.Ext(e.Name())) {
			continue
		}
		paths = append(paths, filepath.Join(m.ConfDir, e.Name()))
	}
	return paths, nil
}

// ensureBinary puts the plugin into the runtime's folder unless it is there
// already, byte for byte.
func (m *Manager) ensureBinary() error {
	source, err := os.Stat(m.Source)
	if err != nil {
		return fmt.Errorf("find the plugin in the image: %w", err)
	}
	target := filepath.Join(m.BinDir, names.CNIType)
	if now, err := os.Stat(target); err == nil && m.inserted && now.Mode().IsRegular() &&
		now.Size() == source.Size() && now.Mode().Perm() == 0o755 {
		// The content was compared at the start.
		return nil
	}
	want, err := os.ReadFile(m.Source)
	if err != nil {
		return fmt.Errorf("read the plugin in the image: %w", err)
	}
	now, err := os.ReadFile(target)
	if info, statErr := os.Stat(target); err == nil && statErr == nil && bytes.Equal(now, want) && info.Mode().Perm() == 0o755 {
		return nil
	}
	if err := os.MkdirAll(m.BinDir, 0o755); err != nil {
		return fmt.Errorf("make the plugins' folder: %w", err)
	}
	if err := write(target, want, 0o755); err != nil {
		return fmt.Errorf("install the plugin: %w", err)
	}
	m.Log.Info("cni plugin installed", "file", target, "bytes", len(want))
	return nil
}

// Remove takes our entry out of every list, puts converted configurations back,
// and then deletes the binary, so that no configuration names a plugin that is
// gone. The agent must not run meanwhile.
func (m *Manager) Remove() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	paths, err := m.files(".conflist")
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		paths = nil
	}
	var errs []error
	for _, path := range paths {
		var err error
		for range 5 {
			if err = m.removeFrom(path); !errors.Is(err, errChanged) {
				break
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("take hauberk-cni out of %s: %w", path, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(m.BinDir, names.CNIType)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete the plugin: %w", err)
	}
	m.state, m.inserted = State{}, false
	return nil
}

func (m *Manager) removeFrom(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Contains(text, []byte(names.CNIType)) {
		return nil
	}
	l, err := parseList(text)
	if err != nil {
		return err
	}
	if len(l.ours) == 0 {
		return nil
	}
	if base, ok := strings.CutSuffix(path, convertedSuffix); ok {
		return m.unconvert(base, path, text, l)
	}
	next, err := remove(text)
	if err != nil {
		return err
	}
	m.Log.Info("cni chain entry removed", "file", path)
	return replace(path, text, next)
}

// unconvert puts back the single configuration that a list was made of. If
// somebody put more plugins into the list, it stays a list.
func (m *Manager) unconvert(base, path string, text []byte, l list) error {
	for _, ext := range []string{".conf", ".json"} {
		saved := base + ext + savedSuffix
		original, err := os.ReadFile(saved)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if first := l.plugins[0]; len(l.plugins) == 1+len(l.ours) && bytes.Equal(bytes.TrimSpace(original), text[first.start:first.end]) {
			_, err := os.Stat(base + ext)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				err = os.Rename(saved, base+ext)
			case err == nil:
				err = os.Remove(saved)
			}
			if err != nil {
				return err
			}
			m.Log.Info("cni configuration put back", "file", base+ext)
			return os.Remove(path)
		}
	}
	next, err := remove(text)
	if err != nil {
		return err
	}
	m.Log.Info("cni chain entry removed", "file", path)
	return replace(path, text, next)
}
