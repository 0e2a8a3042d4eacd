package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/node/chain"
	"github.com/hauberk-mesh/hauberk/node/cniserver"
	"github.com/hauberk-mesh/hauberk/node/redirect"
	"github.com/hauberk-mesh/hauberk/node/tunnel"
)

// lockName is the file in the run folder that the one agent of a node holds.
const lockName = "agent.lock"

// lock makes sure that one agent, or one cleanup, is at work on the node. It
// waits for the one before to end.
func lock(ctx context.Context, log *slog.Logger, runDir string) (unlock func(), err error) {
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the run folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(runDir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the node's lock: %w", err)
	}
	said := false
	for {
		// The kernel lets go of it when the process ends, however it does.
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if !said {
			said = true
			log.Info("waiting for the node agent before this one to end", "lock", f.Name())
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for the node's lock %s: %w; is another hauberk-node running?", f.Name(), ctx.Err())
		}
	}
}

// Cleanup takes everything of ours off the node: the chain entry and the
// plugin, so that pods start without us; redirection in the pods that live; the
// kernel tables and the tunnel; the run folder. It goes on after a failure and
// succeeds when there is nothing. The lock is held.
func Cleanup(ctx context.Context, c Config, log *slog.Logger) error {
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
			log.Error("cleanup: failed", "what", what, "error", err)
			return
		}
		log.Info("cleanup: done", "what", what)
	}
	manager, err := chain.New(chain.Options{Log: log, ConfDir: c.ConfDir, BinDir: c.BinDir, Socket: c.socket()})
	if err == nil {
		err = manager.Remove()
	}
	note("cni chain entry and plugin", err)
	note("redirection in pods", unredirect(ctx, c, log))
	note("policy in the kernel", removeTable(ctx, names.PolicyTable))
	nft, err := knftables.New(knftables.InetFamily, names.TunnelTable)
	if err == nil {
		err = tunnel.Cleanup(ctx, nft)
	}
	note("tunnel", err)
	note("run folder", emptyRunDir(c))
	return errors.Join(errs...)
}

// unredirect frees pods whose sidecars have no control plane any more.
func unredirect(ctx context.Context, c Config, log *slog.Logger) error {
	attachments, err := cniserver.OpenAttachments(c.podsDir())
	errs := []error{err}
	redirector, err := redirect.New(redirect.Options{Log: log})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	if attachments != nil {
		for _, at := range attachments.List() {
			if err := redirector.Remove(ctx, at.Netns); err != nil {
				errs = append(errs, fmt.Errorf("pod %s/%s: %w", at.Namespace, at.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func removeTable(ctx context.Context, name string) error {
	nft, err := knftables.New(knftables.InetFamily, name)
	if err != nil {
		return fmt.Errorf("nftables is not usable: %w", err)
	}
	tx := nft.NewTransaction()
	// Adding first makes deleting succeed whether it was there or not.
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	return nft.Run(ctx, tx)
}

// emptyRunDir leaves the folder itself, which may be a mount, and the lock.
func emptyRunDir(c Config) error {
	var errs []error
	errs = append(errs, os.RemoveAll(c.podsDir()))
	if err := os.Remove(c.socket()); !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
