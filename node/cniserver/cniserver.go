// Package cniserver answers the CNI plugin. It owns the unix socket, the record
// of the node's attached pods, and the order of the steps by which a pod gets
// its network:
//
//  1. the attachment is written down;
//  2. the control plane has told about the pod (bootstrap namespaces do not
//     wait, because the control plane itself is in one);
//  3. a pod with a sidecar is redirected;
//  4. the host side's policy is in place;
//  5. the plugin is answered.
//
// When a step fails the pod has no network and what was done stays: undoing it
// could only open. The runtime follows with a DEL.
//
// The package does not own rules (node/redirect, node/firewall) nor what is
// known of pods (node/agent); it is handed these as small interfaces.
package cniserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/node/redirect"
)

// Pod is an attached pod and what the control plane told about it: nil only
// for a bootstrap pod that it has not told about yet.
type Pod struct {
	Attachment
	Workload *hauberkv1.Workload
}

// Redirector programs redirection inside a pod; see node/redirect.
type Redirector interface {
	Program(ctx context.Context, netns string, rules redirect.Rules) error
	Check(ctx context.Context, netns string, rules redirect.Rules) error
	Remove(ctx context.Context, netns string) error
}

// Firewall programs the host side's policy. AddPod returns when it is in place;
// RemovePod succeeds for what it does not know.
type Firewall interface {
	AddPod(ctx context.Context, pod Pod) error
	RemovePod(ctx context.Context, containerID string) error
}

// Workloads is what is known of this node's pods. Known answers at once; Wait
// waits until the workload and its policy are known, or ctx ends.
type Workloads interface {
	Known(uid string) (*hauberkv1.Workload, bool)
	Wait(ctx context.Context, uid string) (*hauberkv1.Workload, error)
}

// defaultWait is how long an ADD waits for the control plane. The kubelet tries
// again with a new sandbox, so a longer wait gains nothing.
const defaultWait = 20 * time.Second

// answerTime is kept of the caller's deadline for the steps after the wait.
const answerTime = 5 * time.Second

// stopTime bounds how long a stopping server waits for verbs under way.
const stopTime = 3 * time.Second

// Options configures a Server.
type Options struct {
	Log         *slog.Logger
	Socket      string // path
	Attachments *Attachments
	Redirector  Redirector
	Firewall    Firewall
	Workloads   Workloads
	// Bootstrap says which namespaces do not wait for the control plane.
	Bootstrap func(namespace string) bool
	// Ready returns why pods can't be added now, nil if they can.
	Ready func() error
	// Added hears how each ADD went; nil is allowed.
	Added func(took time.Duration, err error)
	// Wait bounds the wait for the control plane; 20 s when zero.
	Wait time.Duration
	// HostInterface finds the host's end of a pod's link; redirect.HostInterface
	// when nil.
	HostInterface func(netns, name string) (string, error)
}

// Server is the unix socket's server.
type Server struct {
	hauberkv1.UnimplementedNodeServer
	Options

	pods    *keyedMutex
	serving chan struct{} // closed by Run
}

// New returns a Server; Run serves.
func New(o Options) (*Server, error) {
	if o.Log == nil || o.Socket == "" || o.Attachments == nil || o.Redirector == nil || o.Firewall == nil || o.Workloads == nil {
		return nil, errors.New("cni server: log, socket, attachments, redirector, firewall and workloads are required")
	}
	if o.Bootstrap == nil {
		o.Bootstrap = func(string) bool { return false }
	}
	if o.Ready == nil {
		o.Ready = func() error { return nil }
	}
	if o.Added == nil {
		o.Added = func(time.Duration, error) {}
	}
	if o.Wait == 0 {
		o.Wait = defaultWait
	}
	if o.HostInterface == nil {
		o.HostInterface = redirect.HostInterface
	}
	return &Server{Options: o, pods: newKeyedMutex(), serving: make(chan struct{})}, nil
}

// Serving is closed once the socket takes connections.
func (s *Server) Serving() <-chan struct{} { return s.serving }

// Run serves until ctx ends. It must be called once. The socket's folder is
// made for root alone, a stale socket is replaced: that only one agent runs is
// the caller's concern.
func (s *Server) Run(ctx context.Context) error {
	dir := filepath.Dir(s.Socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the socket's folder: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("close the socket's folder to others: %w", err)
	}
	if err := os.Remove(s.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace the socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", s.Socket)
	if err != nil {
		return fmt.Errorf("listen for the cni plugin: %w", err)
	}
	if err := os.Chmod(s.Socket, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("close the socket to others: %w", err)
	}
	server := grpc.NewServer(grpc.ConnectionTimeout(5 * time.Second))
	hauberkv1.RegisterNodeServer(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(rootOnly{Listener: l, log: s.Log}) }()
	close(s.serving)
	s.Log.Info("serving the cni plugin", "socket", s.Socket)

	select {
	case err := <-done:
		return fmt.Errorf("serve the cni plugin: %w", err)
	case <-ctx.Done():
	}
	timer := time.AfterFunc(stopTime, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
	return <-done
}
