package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

const (
	signTimeout = 20 * time.Second
	maxToken    = 64 << 10 // bytes

	// pause is the least time between two SVIDs when roots that do not cover
	// the present one ask for another: roots and CA that disagree for long must
	// not make the whole mesh hammer the CA.
	pause = 10 * time.Second

	defaultMinBackoff = 500 * time.Millisecond
	defaultMaxBackoff = 30 * time.Second
)

// Renewal is the outcome of one attempt to get an SVID.
type Renewal struct {
	// Err is nil when it was got.
	Err error
	// Expiry is the end of the SVID in use, new or old; zero if there is none.
	Expiry time.Time
	// Took is how long the attempt lasted.
	Took time.Duration
}

// RenewerOptions say where SVIDs come from.
type RenewerOptions struct {
	// ControlAddress of the CA, host:port.
	ControlAddress string
	// TokenFile holds a projected service account token of audience
	// hauberk-ca. It is read for each attempt, because the kubelet replaces it.
	TokenFile   string
	TrustDomain spiffeid.TrustDomain
	// InitialRoots are trusted until the CA or the config stream names others.
	InitialRoots []*x509.Certificate
	Log          *slog.Logger

	// OnRenewal hears of each attempt; nil is allowed. It must not block.
	OnRenewal func(Renewal)
	// Backoff after a failed attempt: it doubles from Min to Max, with jitter.
	// Zero means 500 ms and 30 s.
	MinBackoff, MaxBackoff time.Duration
	// Dial replaces the network's dialler; nil dials TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

func (o RenewerOptions) validate() error {
	switch {
	case o.ControlAddress == "":
		return errors.New("identity: address of the control plane is empty")
	case o.TokenFile == "":
		return errors.New("identity: no file of a service account token is named")
	case len(o.InitialRoots) == 0:
		return errors.New("identity: no trust root; without one the CA can't be verified")
	case o.Log == nil:
		return errors.New("identity: logger is missing")
	case o.MinBackoff < 0, o.MaxBackoff < o.MinBackoff:
		return fmt.Errorf("identity: backoff from %s to %s is not a range", o.MinBackoff, o.MaxBackoff)
	}
	return nil
}

// Renewer keeps a Source supplied with SVIDs from the CA.
type Renewer struct {
	opts    RenewerOptions
	source  *Source
	sign    func(ctx context.Context, csr []byte) (*hauberkv1.SignResponse, error)
	running atomic.Bool
}

// NewRenewer checks the options; Run asks the CA.
func NewRenewer(opts RenewerOptions) (*Renewer, error) {
	if opts.MinBackoff == 0 {
		opts.MinBackoff = defaultMinBackoff
	}
	if opts.MaxBackoff == 0 {
		opts.MaxBackoff = max(defaultMaxBackoff, opts.MinBackoff)
	}
	if err := opts.validate(); err != nil {
		return nil, err
	}
	source, err := NewSource(opts.TrustDomain, opts.InitialRoots)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	r := &Renewer{opts: opts, source: source}
	r.sign = r.signAtCA
	return r, nil
}

// Source is what the renewer supplies; it exists before Run.
func (r *Renewer) Source() *Source { return r.source }

// Run gets an SVID and renews it at half its life, with jitter, until ctx ends;
// then it returns nil. When that fails it tries again for ever and leaves the
// last good SVID in place. Roots that no longer cover the SVID make it renew at
// once.
func (r *Renewer) Run(ctx context.Context) error {
	if r.running.Swap(true) {
		return errors.New("identity: Run was called twice")
	}
	delay := r.opts.MinBackoff
	for {
		updated := r.source.Updated()
		start := time.Now()
		err := r.renew(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if r.opts.OnRenewal != nil {
			r.opts.OnRenewal(Renewal{Err: err, Expiry: r.source.Expiry(), Took: time.Since(start)})
		}
		if err == nil {
			delay = r.opts.MinBackoff
			svid, _ := r.source.Current()
			leaf := svid.Certificates[0]
			next := renewAt(leaf, time.Now())
			r.opts.Log.Info("identity issued", "spiffe_id", svid.ID.String(), "serial", leaf.SerialNumber.Text(16),
				"expires", leaf.NotAfter, "renew_at", next)
			if err := r.waitForRenewal(ctx, time.Now(), next); err != nil {
				return nil
			}
			continue
		}
		wait := delay/2 + rand.N(delay/2+1)
		delay = min(2*delay, r.opts.MaxBackoff)
		r.logFailure(err, wait)
		// New roots may be what was missing.
		if sleep(ctx, wait, updated) != nil {
			return nil
		}
	}
}

// waitForRenewal returns when the SVID is due or no longer covered by the roots;
// with an error when ctx ends.
func (r *Renewer) waitForRenewal(ctx context.Context, issued, due time.Time) error {
	for {
		updated := r.source.Updated()
		svid, _ := r.source.Current()
		if time.Now().Before(svid.Certificates[0].NotAfter) {
			if _, err := r.source.VerifyPeer(svid.Certificates, x509.ExtKeyUsageServerAuth); err != nil {
				r.opts.Log.Info("trust roots no longer cover the identity, renewing", "error", err)
				wait := max(r.opts.MinBackoff, pause-time.Since(issued))
				return sleep(ctx, wait/2+rand.N(wait/2+1), nil)
			}
		}
		wait := time.Until(due)
		if wait <= 0 {
			return nil
		}
		// In short steps: a timer does not advance while the machine sleeps.
		if err := sleep(ctx, min(wait, time.Minute), updated); err != nil {
			return err
		}
	}
}

// sleep waits for d, for wake, or, with an error, for the end of ctx.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	case <-wake:
	}
	return nil
}

// renewAt is half of a certificate's life, give or take a tenth of it, so that
// workloads started together do not renew together.
func renewAt(leaf *x509.Certificate, now time.Time) time.Time {
	life := leaf.NotAfter.Sub(now)
	if life <= 0 {
		return now
	}
	return now.Add(life/2 - life/10 + rand.N(life/5+1))
}

func (r *Renewer) logFailure(err error, wait time.Duration) {
	expiry := r.source.Expiry()
	args := []any{"control_address", r.opts.ControlAddress, "error", err, "retry_in", wait.Round(time.Millisecond)}
	switch {
	case expiry.IsZero():
		r.opts.Log.Warn("no identity yet: the CA issued none", args...)
	case time.Now().After(expiry):
		r.opts.Log.Error("identity expired and was not renewed: connections of the mesh are refused", append(args, "expired", expiry)...)
	default:
		r.opts.Log.Warn("identity not renewed; the present one stays in use", append(args, "expires", expiry)...)
	}
}

// renew makes a new key, has it certified and puts it in use.
func (r *Renewer) renew(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	// The CA reads nothing of the request but the key.
	csr, err := x509.CreateCertificateRequest(cryptorand.Reader, &x509.CertificateRequest{Subject: pkix.Name{}}, key)
	if err != nil {
		return fmt.Errorf("make a certificate request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	response, err := r.sign(ctx, csr)
	if err != nil {
		return err
	}
	if got := response.GetTrustDomain(); got != r.opts.TrustDomain.Name() {
		return fmt.Errorf("CA is of trust domain %q, this process of %q: set HAUBERK_TRUST_DOMAIN to the mesh's", got, r.opts.TrustDomain.Name())
	}
	roots, err := ParseRootsDER(response.GetRoots())
	if err != nil {
		return fmt.Errorf("answer of the CA: %w", err)
	}
	if n := len(response.GetChain()); n == 0 || n > maxChain {
		return fmt.Errorf("answer of the CA: %d certificates in the chain, want 1 to %d", n, maxChain)
	}
	svid := &x509svid.SVID{PrivateKey: key}
	for i, der := range response.GetChain() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("answer of the CA: certificate %d: %w", i, err)
		}
		svid.Certificates = append(svid.Certificates, cert)
	}
	peer, err := PeerFromCertificate(svid.Certificates[0])
	if err != nil {
		return fmt.Errorf("answer of the CA: %w", err)
	}
	svid.ID = peer.ID
	if old, ok := r.source.Current(); ok && old.ID != svid.ID {
		return fmt.Errorf("answer of the CA: identity %s, but this process is %s", svid.ID, old.ID)
	}
	if err := r.source.Set(svid, roots); err != nil {
		return fmt.Errorf("answer of the CA: %w", err)
	}
	return nil
}

// signAtCA asks the CA on a connection of its own. It shows the token and no
// certificate: an expired one must not keep the next one away.
func (r *Renewer) signAtCA(ctx context.Context, csr []byte) (*hauberkv1.SignResponse, error) {
	token, err := r.token()
	if err != nil {
		return nil, err
	}
	config := anonymousClientTLS(r.source, Expect{ID: ControlID(r.opts.TrustDomain)})
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithPerRPCCredentials(bearer(token)),
		// A proxy from the environment must not come between us.
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1 << 20)),
	}
	if r.opts.Dial != nil {
		options = append(options, grpc.WithContextDialer(r.opts.Dial))
	}
	conn, err := grpc.NewClient("passthrough:///"+r.opts.ControlAddress, options...)
	if err != nil {
		return nil, fmt.Errorf("control plane %s: %w", r.opts.ControlAddress, err)
	}
	defer conn.Close()
	response, err := hauberkv1.NewCertificateAuthorityClient(conn).Sign(ctx, &hauberkv1.SignRequest{Csr: csr})
	if err != nil {
		return nil, signError(err)
	}
	return response, nil
}

func (r *Renewer) token() (string, error) {
	data, err := readLimited(r.opts.TokenFile, maxToken)
	if err != nil {
		return "", fmt.Errorf("service account token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", fmt.Errorf("service account token: %s is empty", r.opts.TokenFile)
	}
	return token, nil
}

// signError says what a refusal means to whoever reads the log.
func signError(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch s.Code() {
	case codes.Unavailable:
		return fmt.Errorf("control plane is not reachable: %s", s.Message())
	case codes.DeadlineExceeded:
		return fmt.Errorf("control plane did not answer in %s", signTimeout)
	case codes.Unauthenticated, codes.PermissionDenied:
		return fmt.Errorf("CA refuses this pod's token: %s", s.Message())
	}
	return fmt.Errorf("CA: %s: %s", s.Code(), s.Message())
}

// bearer shows a token, on encrypted connections only.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }
