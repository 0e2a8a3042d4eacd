package cniserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/hauberk-mesh/hauberk/node/redirect"
)

// Attachment is one pod's place in the network as the runtime told it. It holds
// no secret, no label and no policy.
type Attachment struct {
	ContainerID   string       `json:"containerID"`
	Netns         string       `json:"netns"`
	Interface     string       `json:"interface"`
	HostInterface string       `json:"hostInterface"`
	Namespace     string       `json:"namespace"`
	Name          string       `json:"name"`
	UID           string       `json:"uid"`
	Addresses     []netip.Addr `json:"addresses"`
	// Bootstrap says that the pod's namespace does not wait for the control
	// plane.
	Bootstrap bool `json:"bootstrap,omitempty"`
	// Redirect is the rules inside the pod, nil for a pod without a sidecar. They
	// are those of the ADD: annotations that change afterwards do not matter,
	// because the host's policy must know what is really captured.
	Redirect *redirect.Rules `json:"redirect,omitempty"`
	// Complete says that the ADD was answered.
	Complete bool `json:"complete,omitempty"`
}

// containerID is what the CNI specification allows; it keeps path separators
// out of file names.
var containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

// Attachments is the attachments of this node, in memory and as one file each,
// so that the agent knows its pods again after a restart. It is safe for
// concurrent use.
type Attachments struct {
	dir string

	mu   sync.Mutex
	byID map[string]Attachment
}

// OpenAttachments reads the files in dir, which is made if need be. A file that
// can't be read is an error: its pod must not be forgotten silently.
func OpenAttachments(dir string) (*Attachments, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of attachments: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the folder of attachments: %w", err)
	}
	a := &Attachments{dir: dir, byID: map[string]Attachment{}}
	var errs []error
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !containerID.MatchString(id) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("read attachment: %w", err))
			continue
		}
		var at Attachment
		if err := json.Unmarshal(data, &at); err != nil {
			errs = append(errs, fmt.Errorf("read attachment %s: %w; delete the pod and then the file", path, err))
			continue
		}
		if at.ContainerID != id {
			errs = append(errs, fmt.Errorf("attachment %s is of container %q; delete the file", path, at.ContainerID))
			continue
		}
		a.byID[id] = at
	}
	return a, errors.Join(errs...)
}

// List is all attachments, by container id.
func (a *Attachments) List() []Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]Attachment, 0, len(a.byID))
	for _, at := range a.byID {
		list = append(list, at)
	}
	slices.SortFunc(list, func(x, y Attachment) int { return strings.Compare(x.ContainerID, y.ContainerID) })
	return list
}

// Find is the attachment of a container.
func (a *Attachments) Find(id string) (Attachment, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.byID[id]
	return at, ok
}

// Put records an attachment, on disk first.
func (a *Attachments) Put(at Attachment) error {
	if !containerID.MatchString(at.ContainerID) {
		return fmt.Errorf("%q is not a container id", at.ContainerID)
	}
	data, err := json.Marshal(at)
	if err != nil {
		return fmt.Errorf("write attachment of %s: %w", at.ContainerID, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	path := a.path(at.ContainerID)
	// The folder is ours alone, and writers are serialised by mu.
	if err := os.WriteFile(path+".tmp", append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write attachment: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("write attachment: %w", err)
	}
	a.byID[at.ContainerID] = at
	return nil
}

// Delete forgets an attachment, known or not.
func (a *Attachments) Delete(id string) error {
	if !containerID.MatchString(id) {
		return fmt.Errorf("%q is not a container id", id)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := os.Remove(a.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete attachment: %w", err)
	}
	delete(a.byID, id)
	return nil
}

func (a *Attachments) path(id string) string { return filepath.Join(a.dir, id+".json") }
