package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

const (
	// maxReviews run at once: what a start of the whole mesh may ask of the API
	// server. Others wait, within their own deadline and reviewTimeout.
	maxReviews    = 32
	reviewTimeout = 10 * time.Second

	denialRate  = 5 // log lines a second
	denialBurst = 20
)

// Outcome of a Sign call, for metrics.
type Outcome string

// The outcomes.
const (
	OutcomeIssued  Outcome = "issued"
	OutcomeDenied  Outcome = "denied"  // the token or the request is no good
	OutcomeLimited Outcome = "limited" // too many requests from one address
	OutcomeFailed  Outcome = "failed"  // the API server or the CA could not
)

// ServerOptions of a Server.
type ServerOptions struct {
	Authority *Authority
	Reviewer  TokenReviewer
	Log       *slog.Logger
	// OnSign hears of each call; nil is allowed. It must not block.
	OnSign func(Outcome)
}

// Server is the CertificateAuthority service. It must be served over TLS only.
type Server struct {
	hauberkv1.UnimplementedCertificateAuthorityServer

	authority *Authority
	reviewer  TokenReviewer
	log       *slog.Logger
	onSign    func(Outcome)
	limits    *limiter
	reviews   chan struct{} // a slot for each review under way
	denials   *rate.Limiter
	unlogged  atomic.Uint64
}

// NewServer checks the options.
func NewServer(opts ServerOptions) (*Server, error) {
	switch {
	case opts.Authority == nil:
		return nil, errors.New("ca: authority is missing")
	case opts.Reviewer == nil:
		return nil, errors.New("ca: token reviewer is missing")
	case opts.Log == nil:
		return nil, errors.New("ca: logger is missing")
	}
	s := &Server{
		authority: opts.Authority,
		reviewer:  opts.Reviewer,
		log:       opts.Log,
		onSign:    opts.OnSign,
		limits:    newLimiter(),
		reviews:   make(chan struct{}, maxReviews),
		denials:   rate.NewLimiter(denialRate, denialBurst),
	}
	if s.onSign == nil {
		s.onSign = func(Outcome) {}
	}
	return s, nil
}

// Sign checks the token, then the request, and signs. Errors are gRPC statuses
// whose text tells the caller what to mend and nothing of this process.
func (s *Server) Sign(ctx context.Context, request *hauberkv1.SignRequest) (*hauberkv1.SignResponse, error) {
	from := peerAddr(ctx)
	if !s.limits.allow(from, time.Now()) {
		s.deny(OutcomeLimited, from, "too many requests from this address", "")
		return nil, status.Error(codes.ResourceExhausted, "too many requests from this address; try again later")
	}
	token, err := bearerToken(ctx)
	if err != nil {
		s.deny(OutcomeDenied, from, err.Error(), "")
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	review, err := s.review(ctx, token)
	if err != nil {
		s.onSign(OutcomeFailed)
		if s.denials.Allow() {
			s.log.Warn("token not checked", "peer", from.String(), "error", err)
		}
		return nil, status.Error(codes.Unavailable, "the token can't be checked with the API server now; try again later")
	}
	caller, err := callerOf(review, s.authority.TrustDomain())
	if err != nil {
		s.deny(OutcomeDenied, from, err.Error(), review.User.Username)
		code := codes.PermissionDenied
		if errors.Is(err, errUnauthenticated) {
			code = codes.Unauthenticated
		}
		return nil, status.Error(code, err.Error())
	}
	public, err := requestKey(request.GetCsr())
	if err != nil {
		s.deny(OutcomeDenied, from, err.Error(), review.User.Username)
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	chain, err := s.authority.Sign(caller, public)
	if err != nil {
		s.onSign(OutcomeFailed)
		s.log.Error("svid not signed", "peer", from.String(), "spiffe_id", caller.ID.String(), "pod_uid", caller.PodUID, "error", err)
		return nil, status.Error(codes.Internal, "the certificate could not be signed; the control plane's log says why")
	}
	s.onSign(OutcomeIssued)
	s.log.Info("svid issued", "peer", from.String(), "spiffe_id", caller.ID.String(), "pod_uid", caller.PodUID, "node", caller.Node,
		"serial", chain[0].SerialNumber.Text(16), "expires", chain[0].NotAfter)
	response := &hauberkv1.SignResponse{TrustDomain: s.authority.TrustDomain().Name()}
	for _, cert := range chain {
		response.Chain = append(response.Chain, cert.Raw)
	}
	for _, root := range s.authority.Roots() {
		response.Roots = append(response.Roots, root.Raw)
	}
	return response, nil
}

// review asks the API server, of which only so many at once.
func (s *Server) review(ctx context.Context, token string) (authenticationv1.TokenReviewStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	select {
	case s.reviews <- struct{}{}:
		defer func() { <-s.reviews }()
	case <-ctx.Done():
		return authenticationv1.TokenReviewStatus{}, fmt.Errorf("wait for a turn: %w", ctx.Err())
	}
	return s.reviewer.Review(ctx, token)
}

// deny counts and logs a refusal; never the token.
func (s *Server) deny(outcome Outcome, from netip.Addr, reason, user string) {
	s.onSign(outcome)
	if !s.denials.Allow() {
		s.unlogged.Add(1)
		return
	}
	s.log.Info("certificate denied", "peer", from.String(), "reason", reason, "user", user, "not_logged_before", s.unlogged.Swap(0))
}

// peerAddr is the caller's address; the zero one, which is limited like any
// other, for what has no address.
func peerAddr(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	if tcp, ok := p.Addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}

// bearerToken is the token of the call's metadata.
func bearerToken(ctx context.Context) (string, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return "", errors.New(`no single "authorization: Bearer" with a service account token`)
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", errors.New(`authorization is not of the form "Bearer <token>"`)
	}
	if !tokenShaped(token) {
		return "", errors.New("token is not a service account token")
	}
	return token, nil
}
