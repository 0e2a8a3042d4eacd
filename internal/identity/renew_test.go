package identity_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/identity/identitytest"
)

// signer is the CA of a renewer under test. What is below mu is guarded by it.
type signer struct {
	t  *testing.T
	mu sync.Mutex

	ca    *identitytest.Authority
	peer  identity.Peer
	ttl   time.Duration
	err   error
	td    string
	calls int
}

func (s *signer) sign(_ context.Context, der []byte) (*hauberkv1.SignResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.err != nil {
		return nil, s.err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	template := s.ca.Template(s.t, s.peer)
	template.NotAfter = time.Now().Add(s.ttl)
	return &hauberkv1.SignResponse{
		Chain:       [][]byte{s.ca.Sign(s.t, template, csr.PublicKey).Raw},
		Roots:       [][]byte{s.ca.Root.Raw},
		TrustDomain: s.td,
	}, nil
}

// change changes what the CA does from now on.
func (s *signer) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// count is how often the CA was asked.
func (s *signer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// renewing runs f beside a renewer in a bubble of fake time.
func renewing(t *testing.T, f func(t *testing.T, s *signer, r *identity.Renewer)) {
	synctest.Test(t, func(t *testing.T) {
		ca := identitytest.NewAuthority(t, "")
		s := &signer{t: t, ca: ca, peer: identity.Peer{ID: ca.ID(t, "bank", "summary"), PodUID: uid}, ttl: 24 * time.Hour, td: "cluster.local"}
		r, err := identity.NewRenewer(identity.RenewerOptions{
			ControlAddress: "192.0.2.1:15012", TokenFile: "unused", TrustDomain: ca.TrustDomain,
			InitialRoots: ca.Roots(), Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		r.SetSign(s.sign)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		f(t, s, r)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestRenewAtHalfLife(t *testing.T) {
	renewing(t, func(t *testing.T, s *signer, r *identity.Renewer) {
		first, ok := r.Source().Current()
		if !ok || first.ID != s.peer.ID {
			t.Fatalf("no SVID after the first answer")
		}
		time.Sleep(9 * time.Hour)
		synctest.Wait()
		if s.count() != 1 {
			t.Fatalf("%d requests in 9 h", s.count())
		}
		time.Sleep(6 * time.Hour)
		synctest.Wait()
		second, _ := r.Source().Current()
		if s.count() != 2 || second.Certificates[0].Equal(first.Certificates[0]) {
			t.Fatalf("%d requests in 15 h, want 2 and a new SVID", s.count())
		}
		if first.PrivateKey == second.PrivateKey {
			t.Error("the key was not renewed")
		}
	})
}

func TestRenewKeepsLastGood(t *testing.T) {
	renewing(t, func(t *testing.T, s *signer, r *identity.Renewer) {
		s.change(func() { s.err = errors.New("away") })
		time.Sleep(20 * time.Hour)
		synctest.Wait()
		if _, err := r.Source().GetX509SVID(); err != nil {
			t.Errorf("4 h before expiry: %v", err)
		}
		// Half of the life is over after 9.6 to 14.4 h; then an attempt every
		// 15 to 30 s.
		if n := s.count(); n < 600 || n > 2600 {
			t.Errorf("%d attempts in 20 h", n)
		}
		time.Sleep(5 * time.Hour)
		if _, err := r.Source().GetX509SVID(); !errors.Is(err, identity.ErrNoSVID) {
			t.Errorf("after expiry: got %v, want ErrNoSVID", err)
		}
		s.change(func() { s.err = nil })
		time.Sleep(time.Minute)
		if _, err := r.Source().GetX509SVID(); err != nil {
			t.Errorf("with the CA back: %v", err)
		}
	})
}

func TestRenewWhenRootsChange(t *testing.T) {
	renewing(t, func(t *testing.T, s *signer, r *identity.Renewer) {
		next := identitytest.NewAuthority(t, "")
		s.change(func() { s.ca = next })
		if err := r.Source().SetRoots(next.Roots()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		svid, _ := r.Source().Current()
		if _, err := r.Source().VerifyPeer(svid.Certificates, x509.ExtKeyUsageClientAuth); err != nil || s.count() != 2 {
			t.Errorf("%d requests, and the SVID does not chain to the new roots: %v", s.count(), err)
		}
		// Roots that never fit do not make it spin.
		if err := r.Source().SetRoots(identitytest.NewAuthority(t, "").Roots()); err != nil {
			t.Fatal(err)
		}
		before := s.count()
		time.Sleep(time.Minute)
		if n := s.count() - before; n < 1 || n > 15 {
			t.Errorf("%d requests in a minute", n)
		}
	})
}

func TestRenewRefusesAnswers(t *testing.T) {
	tests := map[string]func(t *testing.T, s *signer){
		"another identity":     func(t *testing.T, s *signer) { s.peer.ID = s.ca.ID(t, "bank", "admin") },
		"another trust domain": func(_ *testing.T, s *signer) { s.td = "abroad.example" },
		"expired":              func(_ *testing.T, s *signer) { s.ttl = -time.Second },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			renewing(t, func(t *testing.T, s *signer, r *identity.Renewer) {
				first, _ := r.Source().Current()
				s.change(func() { change(t, s) })
				time.Sleep(15 * time.Hour)
				synctest.Wait()
				if now, _ := r.Source().Current(); now != first || s.count() < 2 {
					t.Errorf("%d requests; the answer was taken", s.count())
				}
			})
		})
	}
}

func TestNewRenewerRefuses(t *testing.T) {
	ca := identitytest.NewAuthority(t, "")
	good := identity.RenewerOptions{ControlAddress: "a:1", TokenFile: "t", TrustDomain: ca.TrustDomain, InitialRoots: ca.Roots(), Log: slog.New(slog.DiscardHandler)}
	if _, err := identity.NewRenewer(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*identity.RenewerOptions){
		"address": func(o *identity.RenewerOptions) { o.ControlAddress = "" },
		"token":   func(o *identity.RenewerOptions) { o.TokenFile = "" },
		"root":    func(o *identity.RenewerOptions) { o.InitialRoots = nil },
		"backoff": func(o *identity.RenewerOptions) { o.MinBackoff, o.MaxBackoff = 2, 1 },
		"logger":  func(o *identity.RenewerOptions) { o.Log = nil },
	} {
		opts := good
		change(&opts)
		if _, err := identity.NewRenewer(opts); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an error about %s", err, name)
		}
	}
}

func TestFileSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := identitytest.NewAuthority(t, "")
		dir := t.TempDir()
		path := func(name string) string { return filepath.Join(dir, name) }
		write := func(ttl time.Duration) {
			svid := ca.SVID(t, identity.Peer{ID: ca.ID(t, "bank", "summary")}, ttl)
			chain, key, err := svid.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			for name, data := range map[string][]byte{"cert": chain, "key": key, "roots": ca.RootsPEM()} {
				if err := os.WriteFile(path(name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := identity.NewFileSource(path("cert"), path("key"), path("roots")); err == nil {
			t.Fatal("files that do not exist are taken")
		}
		write(time.Hour)
		source, err := identity.NewFileSource(path("cert"), path("key"), path("roots"))
		if err != nil {
			t.Fatal(err)
		}
		<-source.Ready()
		first := source.Expiry()
		write(2 * time.Hour)
		time.Sleep(6 * time.Second)
		if now := source.Expiry(); !now.After(first) {
			t.Errorf("the new files are not read (%v)", source.FileError())
		}
		if err := os.WriteFile(path("cert"), []byte("half a file"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		if _, err := source.GetX509SVID(); err != nil || source.FileError() == nil {
			t.Errorf("bad files: SVID %v, file error %v; want the last good one and an error", err, source.FileError())
		}
		time.Sleep(3 * time.Hour)
		if _, err := source.GetX509SVID(); !errors.Is(err, identity.ErrNoSVID) {
			t.Errorf("after expiry: %v", err)
		}
	})
}

func TestParseRoots(t *testing.T) {
	ca := identitytest.NewAuthority(t, "")
	root := ca.RootsPEM()
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}})
	tests := map[string]struct {
		data []byte
		want int
	}{
		"one": {root, 1}, "two": {append(append([]byte{}, root...), root...), 2}, "none": {nil, 0}, "text": {[]byte("hello"), 0},
		"with a key": {append(append([]byte{}, root...), key...), 0}, "with text after": {append(append([]byte{}, root...), "x"...), 0},
		"cut": {root[:len(root)/2], 0},
	}
	for name, test := range tests {
		got, err := identity.ParseRoots(test.data)
		if len(got) != test.want || (err == nil) != (test.want > 0) {
			t.Errorf("%s: got %d roots, %v; want %d", name, len(got), err, test.want)
		}
	}
}
