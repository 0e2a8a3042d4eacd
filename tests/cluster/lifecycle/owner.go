// Package lifecycle owns the cluster from start to end: bringing it up,
// telling whether it is whole, mending and removing it. What the machine is
// asked for is in package host, what the components are told in render.
package lifecycle

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hauberk-mesh/hauberk/tests/cluster/host"
	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
	"github.com/hauberk-mesh/hauberk/tests/cluster/report"
)

// Checkout is the working copy whose cluster it is.
type Checkout struct {
	Dir string // absolute
}

// FindCheckout looks for the checkout which dir lies in.
func FindCheckout(dir string) (Checkout, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Checkout{}, err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "tests", "cluster", "kubernetes", "go.mod")); err == nil {
			return Checkout{Dir: at}, nil
		}
		if at == filepath.Dir(at) {
			return Checkout{}, fmt.Errorf("%s is not in a checkout of Hauberk (no tests/cluster/kubernetes/go.mod above it): change into one", dir)
		}
	}
}

// Source is the folder of the cluster program.
func (c Checkout) Source() string { return filepath.Join(c.Dir, "tests", "cluster") }

// State is the folder in which users find what they need of the cluster.
func (c Checkout) State() string { return filepath.Join(c.Dir, ".cluster") }

// Kubeconfig is the administrator's.
func (c Checkout) Kubeconfig() string { return filepath.Join(c.State(), "kubeconfig") }

// Logs holds one file a component; they outlive the cluster.
func (c Checkout) Logs() string { return filepath.Join(c.State(), "logs") }

// Log is the named component's log.
func (c Checkout) Log(component string) string {
	return filepath.Join(c.Logs(), component+".log")
}

// owner is what the machine knows of the cluster it runs.
type owner struct {
	Checkout    string       `json:"checkout"`
	Plan        plan.Cluster `json:"plan"`
	Fingerprint string       `json:"fingerprint"`
	BootID      string       `json:"bootID"`
	Binaries    string       `json:"binaries"`
	// Complete is set once the cluster has been seen to work.
	Complete bool `json:"complete"`
}

// errNoCluster says that there is no cluster on this machine.
var errNoCluster = errors.New("no cluster runs on this machine: start one with 'make cluster'")

func readOwner() (owner, error) {
	text, err := os.ReadFile(plan.OwnerPath())
	if errors.Is(err, os.ErrNotExist) {
		return owner{}, errNoCluster
	}
	if err != nil {
		return owner{}, err
	}
	var o owner
	if err := json.Unmarshal(text, &o); err != nil {
		return owner{}, fmt.Errorf("read %s: %w (make cluster starts afresh)", plan.OwnerPath(), err)
	}
	return o, nil
}

// readOwn is readOwner for those who mean the checkout's own cluster.
func readOwn(checkout Checkout) (owner, error) {
	o, err := readOwner()
	if err == nil && o.Checkout != checkout.Dir {
		err = fmt.Errorf("the cluster on this machine is that of %s, not of %s: replace it with 'make cluster'", o.Checkout, checkout.Dir)
	}
	return o, err
}

func writeOwner(o owner) error {
	text, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	return writeWhole(plan.OwnerPath(), append(text, '\n'), 0o644)
}

// writeWhole replaces the file at once, so that nobody reads half of it.
func writeWhole(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	part := path + ".part"
	if err := os.WriteFile(part, content, mode); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// Locked runs f while no other run changes the cluster.
func Locked(r *report.Reporter, f func() error) error {
	if err := host.CheckRoot(); err != nil {
		return err
	}
	lock, err := host.AcquireLock(plan.LockPath, r)
	if err != nil {
		return err
	}
	defer lock.Release()
	return f()
}
