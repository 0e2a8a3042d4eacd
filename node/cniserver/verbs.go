package cniserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/node/redirect"
)

// The plugin reads Unavailable, DeadlineExceeded and Canceled as "the agent is
// away"; the server's own answers use other codes.

// AddPod makes a pod ready for its network; see the package's comment.
func (s *Server) AddPod(ctx context.Context, request *hauberkv1.AddPodRequest) (*hauberkv1.AddPodResponse, error) {
	start := time.Now()
	at, err := attachmentOf(request.GetPod())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	log := s.Log.With("namespace", at.Namespace, "pod", at.Name, "container_id", at.ContainerID)
	redirected, err := s.addPod(ctx, at)
	s.Added(time.Since(start), err)
	if err != nil {
		log.Warn("pod not added", "error", status.Convert(err).Message(), "took", time.Since(start))
		return nil, answer(err)
	}
	log.Info("pod added", "redirected", redirected, "took", time.Since(start))
	return &hauberkv1.AddPodResponse{Redirected: redirected}, nil
}

func (s *Server) addPod(ctx context.Context, at Attachment) (redirected bool, err error) {
	unlock, err := s.pods.lock(ctx, at.ContainerID)
	if err != nil {
		return false, status.Errorf(codes.Aborted, "another request for container %s is under way", at.ContainerID)
	}
	defer unlock()

	if before, ok := s.Attachments.Find(at.ContainerID); ok && before.Interface != at.Interface {
		return false, status.Errorf(codes.InvalidArgument,
			"the pod's interface %s is attached already, and hauberk protects one interface a pod; take hauberk-cni out of the configuration that makes %s", before.Interface, at.Interface)
	}
	// The kernel knows better than the previous plugin's result, which may name
	// a bridge or nothing.
	if at.HostInterface, err = s.HostInterface(at.Netns, at.Interface); err != nil {
		return false, err
	}
	at.Bootstrap = s.Bootstrap(at.Namespace)
	if err := s.Attachments.Put(at); err != nil {
		return false, err
	}
	w, err := s.workload(ctx, at)
	if err != nil {
		return false, err
	}
	if w.GetMeshed() {
		rules, err := Rules(w.GetCapture())
		if err != nil {
			return false, err
		}
		at.Redirect = &rules
		if err := s.Attachments.Put(at); err != nil {
			return false, err
		}
		if err := s.Redirector.Program(ctx, at.Netns, rules); err != nil {
			return false, err
		}
	}
	if err := s.Firewall.AddPod(ctx, Pod{Attachment: at, Workload: w}); err != nil {
		return false, err
	}
	at.Complete = true
	return at.Redirect != nil, s.Attachments.Put(at)
}

// workload is what the control plane tells of the pod, after waiting for it.
func (s *Server) workload(ctx context.Context, at Attachment) (*hauberkv1.Workload, error) {
	if w, ok := s.Workloads.Known(at.UID); ok || at.Bootstrap {
		return w, sameName(at, w)
	}
	wait := s.Wait
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)-answerTime)
	}
	if wait <= 0 {
		return nil, status.Error(codes.FailedPrecondition, "no time is left to wait for the control plane")
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	w, err := s.Workloads.Wait(ctx, at.UID)
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition,
			"the control plane has not told about pod %s/%s (%s) yet, after %s: %v; is hauberk-control running and reachable from this node?",
			at.Namespace, at.Name, at.UID, time.Since(start).Round(time.Millisecond), err)
	}
	return w, sameName(at, w)
}

// sameName refuses a workload that has the UID but is somebody else.
func sameName(at Attachment, w *hauberkv1.Workload) error {
	if w != nil && (w.GetNamespace() != at.Namespace || w.GetName() != at.Name) {
		return status.Errorf(codes.InvalidArgument, "pod uid %s is %s/%s to the control plane and %s/%s to the runtime",
			at.UID, w.GetNamespace(), w.GetName(), at.Namespace, at.Name)
	}
	return nil
}

// DelPod forgets a pod. It succeeds for one that is not known, and for an
// interface that is not the attached one.
func (s *Server) DelPod(ctx context.Context, request *hauberkv1.DelPodRequest) (*hauberkv1.DelPodResponse, error) {
	id := request.GetContainerId()
	if !containerID.MatchString(id) {
		return nil, status.Errorf(codes.InvalidArgument, "%q is not a container id", id)
	}
	unlock, err := s.pods.lock(ctx, id)
	if err != nil {
		return nil, status.Errorf(codes.Aborted, "another request for container %s is under way", id)
	}
	defer unlock()
	at, ok := s.Attachments.Find(id)
	if ok && at.Interface != request.GetInterface() {
		return &hauberkv1.DelPodResponse{}, nil
	}
	if err := s.forget(ctx, id, at.Netns); err != nil {
		s.Log.Warn("pod not deleted", "container_id", id, "error", err)
		return nil, answer(err)
	}
	if ok {
		s.Log.Info("pod deleted", "namespace", at.Namespace, "pod", at.Name, "container_id", id)
	}
	return &hauberkv1.DelPodResponse{}, nil
}

// forget takes out everything of a pod. Redirection goes first: what comes
// after it is still behind the host's policy. That it can't be taken out does
// not matter, since the namespace is about to end.
func (s *Server) forget(ctx context.Context, id, netns string) error {
	if netns != "" {
		if err := s.Redirector.Remove(ctx, netns); err != nil {
			s.Log.Warn("redirection not removed", "container_id", id, "error", err)
		}
	}
	if err := s.Firewall.RemovePod(ctx, id); err != nil {
		return err
	}
	return s.Attachments.Delete(id)
}

// CheckPod compares what is with what should be.
func (s *Server) CheckPod(ctx context.Context, request *hauberkv1.CheckPodRequest) (*hauberkv1.CheckPodResponse, error) {
	want, err := attachmentOf(request.GetPod())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	unlock, err := s.pods.lock(ctx, want.ContainerID)
	if err != nil {
		return nil, status.Errorf(codes.Aborted, "another request for container %s is under way", want.ContainerID)
	}
	defer unlock()
	at, ok := s.Attachments.Find(want.ContainerID)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "container %s is not attached; delete the pod to have it made again", want.ContainerID)
	}
	switch {
	case !at.Complete:
		return nil, status.Errorf(codes.FailedPrecondition, "the pod was never attached completely; delete it to have it made again")
	case at.Interface != want.Interface || at.Netns != want.Netns || at.UID != want.UID:
		return nil, status.Errorf(codes.Internal, "container %s is attached as pod uid %s by %s in %s and not as asked", at.ContainerID, at.UID, at.Interface, at.Netns)
	case !slices.Equal(at.Addresses, want.Addresses):
		return nil, status.Errorf(codes.Internal, "container %s is attached with addresses %v and not %v", at.ContainerID, at.Addresses, want.Addresses)
	}
	host, err := s.HostInterface(at.Netns, at.Interface)
	if err != nil {
		return nil, answer(err)
	}
	if host != at.HostInterface {
		return nil, status.Errorf(codes.Internal, "the host's end of the pod's link is %s and was %s", host, at.HostInterface)
	}
	if at.Redirect != nil {
		if err := s.Redirector.Check(ctx, at.Netns, *at.Redirect); err != nil {
			return nil, answer(err)
		}
	}
	return &hauberkv1.CheckPodResponse{}, nil
}

// CollectPods forgets pods that the runtime does not name and whose network
// namespace is gone. One that still has its namespace keeps its rules, whatever
// the runtime says (another network's configuration may have asked): to forget
// it would let it out.
func (s *Server) CollectPods(ctx context.Context, request *hauberkv1.CollectPodsRequest) (*hauberkv1.CollectPodsResponse, error) {
	valid := map[string]bool{}
	for _, v := range request.GetValid() {
		valid[v.GetContainerId()] = true
	}
	if err := s.collect(ctx, func(at Attachment) bool { return valid[at.ContainerID] }); err != nil {
		return nil, answer(err)
	}
	return &hauberkv1.CollectPodsResponse{}, nil
}

// Collect forgets pods whose network namespace is gone: those that were deleted
// while the agent was away.
func (s *Server) Collect(ctx context.Context) error {
	return s.collect(ctx, func(Attachment) bool { return false })
}

func (s *Server) collect(ctx context.Context, keep func(Attachment) bool) error {
	var errs []error
	for _, at := range s.Attachments.List() {
		if keep(at) || redirect.Exists(at.Netns) {
			continue
		}
		unlock, err := s.pods.lock(ctx, at.ContainerID)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := s.forget(ctx, at.ContainerID, ""); err != nil {
			errs = append(errs, fmt.Errorf("collect pod %s/%s: %w", at.Namespace, at.Name, err))
		} else {
			s.Log.Info("pod collected", "namespace", at.Namespace, "pod", at.Name, "container_id", at.ContainerID)
		}
		unlock()
	}
	return errors.Join(errs...)
}

// Status says whether pods of ordinary namespaces can be added now.
func (s *Server) Status(context.Context, *hauberkv1.StatusRequest) (*hauberkv1.StatusResponse, error) {
	if err := s.Ready(); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "pods outside the bootstrap namespaces can't be added now: %v", err)
	}
	return &hauberkv1.StatusResponse{}, nil
}

// Repair makes the redirection of pods that were attached before a restart as
// it was made then. Rules that are right are left alone.
func (s *Server) Repair(ctx context.Context) error {
	var errs []error
	for _, at := range s.Attachments.List() {
		if err := s.repair(ctx, at.ContainerID); err != nil {
			errs = append(errs, fmt.Errorf("repair redirection of pod %s/%s: %w", at.Namespace, at.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) repair(ctx context.Context, id string) error {
	unlock, err := s.pods.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	at, ok := s.Attachments.Find(id)
	if !ok || at.Redirect == nil || !redirect.Exists(at.Netns) {
		return nil
	}
	changed := s.Redirector.Check(ctx, at.Netns, *at.Redirect)
	if changed == nil {
		return nil
	}
	if err := s.Redirector.Program(ctx, at.Netns, *at.Redirect); err != nil {
		return err
	}
	s.Log.Warn("redirection repaired", "namespace", at.Namespace, "pod", at.Name, "was", changed)
	return nil
}

// answer is err as gRPC carries it: a code that was chosen stays, others mean
// that something failed here.
func answer(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Internal, err.Error())
}

func attachmentOf(p *hauberkv1.PodAttachment) (Attachment, error) {
	at := Attachment{
		ContainerID: p.GetContainerId(), Netns: p.GetNetns(), Interface: p.GetInterface(), HostInterface: p.GetHostInterface(),
		Namespace: p.GetPodNamespace(), Name: p.GetPodName(), UID: p.GetPodUid(),
	}
	if !containerID.MatchString(at.ContainerID) {
		return at, fmt.Errorf("%q is not a container id", at.ContainerID)
	}
	if !filepath.IsAbs(at.Netns) {
		return at, fmt.Errorf("network namespace %q is not an absolute path", at.Netns)
	}
	if at.Interface == "" || at.Namespace == "" || at.Name == "" || at.UID == "" {
		return at, errors.New("the pod's interface, namespace, name and uid are required")
	}
	for _, a := range p.GetAddresses() {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			return at, fmt.Errorf("read the pod's address: %w", err)
		}
		at.Addresses = append(at.Addresses, addr.Unmap())
	}
	if len(at.Addresses) == 0 {
		return at, errors.New("the pod has no address")
	}
	return at, nil
}

// Rules is a workload's capture settings as redirection has them.
func Rules(c *hauberkv1.Capture) (redirect.Rules, error) {
	var r redirect.Rules
	for _, l := range []struct {
		from []uint32
		to   *[]uint16
	}{
		{c.GetExcludeInboundPorts(), &r.ExcludeInboundPorts},
		{c.GetExcludeOutboundPorts(), &r.ExcludeOutboundPorts},
		{c.GetIncludeInboundPorts(), &r.IncludeInboundPorts},
	} {
		for _, p := range l.from {
			if p == 0 || p > math.MaxUint16 {
				return r, fmt.Errorf("the pod's annotations name port %d, which is none", p)
			}
			*l.to = append(*l.to, uint16(p))
		}
	}
	for _, cidr := range c.GetExcludeOutboundCidrs() {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return r, fmt.Errorf("the pod's annotations name an address range that is none: %w", err)
		}
		r.ExcludeOutboundCIDRs = append(r.ExcludeOutboundCIDRs, p)
	}
	return r, nil
}
