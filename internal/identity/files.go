package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// fileInterval is how often, at most, the files of a file source are read.
const fileInterval = 5 * time.Second

// maxFile bounds what is read of one file, in bytes.
const maxFile = 1 << 20

// files reads an SVID and roots from files. There is no goroutine: whoever uses
// the source looks whether they changed, at most once in fileInterval.
type files struct {
	// Set once.
	cert, key, bundle string
	interval          time.Duration

	mu   sync.Mutex
	next time.Time // when to look again
	seen []byte    // what was last read, good or bad
	err  error     // of the last reading
}

// NewFileSource returns a source of a static SVID: PEM files with the chain
// (leaf first), the PKCS #8 or EC private key, and the trust roots. They are read
// again when they change; files that can't be used leave the last good SVID in
// place until it expires.
func NewFileSource(certFile, keyFile, bundleFile string) (*Source, error) {
	f := &files{cert: certFile, key: keyFile, bundle: bundleFile, interval: fileInterval}
	content, err := f.read()
	if err != nil {
		return nil, err
	}
	svid, roots, err := f.parse(content)
	if err != nil {
		return nil, err
	}
	s, err := NewSource(svid.ID.TrustDomain(), roots)
	if err != nil {
		return nil, fmt.Errorf("trust bundle %s: %w", bundleFile, err)
	}
	if err := s.Set(svid, roots); err != nil {
		return nil, fmt.Errorf("certificate %s with trust bundle %s: %w", certFile, bundleFile, err)
	}
	f.seen = bytes.Join(content, nil)
	f.next = time.Now().Add(f.interval)
	s.files = f
	return s, nil
}

// refresh reads the files if it is time. Only one caller does; others go on with
// what there is.
func (f *files) refresh(s *Source) {
	if !f.mu.TryLock() {
		return
	}
	defer f.mu.Unlock()
	now := time.Now()
	if now.Before(f.next) {
		return
	}
	f.next = now.Add(f.interval)
	content, err := f.read()
	if err != nil {
		f.err, f.seen = err, nil
		return
	}
	joined := bytes.Join(content, nil)
	if bytes.Equal(joined, f.seen) {
		return
	}
	f.seen = joined
	svid, roots, err := f.parse(content)
	if err == nil {
		err = s.Set(svid, roots)
	}
	f.err = err
}

// lastError says why the last reading failed.
func (f *files) lastError() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// FileError says why the files of a file source could not be used when they were
// last read; nil when they could, and for every other source.
func (s *Source) FileError() error {
	if s.files == nil {
		return nil
	}
	s.files.refresh(s)
	return s.files.lastError()
}

func (f *files) read() ([][]byte, error) {
	var content [][]byte
	for _, name := range []string{f.cert, f.key, f.bundle} {
		data, err := readLimited(name, maxFile)
		if err != nil {
			return nil, err
		}
		content = append(content, data)
	}
	return content, nil
}

func (f *files) parse(content [][]byte) (*x509svid.SVID, []*x509.Certificate, error) {
	svid, err := x509svid.Parse(content[0], content[1])
	if err != nil {
		return nil, nil, fmt.Errorf("certificate %s with key %s: %w", f.cert, f.key, err)
	}
	roots, err := ParseRoots(content[2])
	if err != nil {
		return nil, nil, fmt.Errorf("trust bundle %s: %w", f.bundle, err)
	}
	return svid, roots, nil
}

// ParseRoots reads trust roots from PEM, such as HAUBERK_TRUST_BUNDLE holds. It
// fails when there is none, and on any block that is no certificate.
func ParseRoots(data []byte) ([]*x509.Certificate, error) {
	var roots []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block of type %q among trust roots", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("trust root %d: %w", len(roots), err)
		}
		roots = append(roots, cert)
	}
	if len(bytes.TrimSpace(data)) > 0 {
		return nil, errors.New("trust roots are followed by something that is not PEM")
	}
	if len(roots) == 0 {
		return nil, errors.New("no trust root in PEM")
	}
	return roots, nil
}

// ParseRootsDER reads trust roots as the protobuf API carries them: DER each.
func ParseRootsDER(ders [][]byte) ([]*x509.Certificate, error) {
	roots := make([]*x509.Certificate, 0, len(ders))
	for i, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("trust root %d: %w", i, err)
		}
		roots = append(roots, cert)
	}
	if len(roots) == 0 {
		return nil, errors.New("no trust root")
	}
	return roots, nil
}

// readLimited reads a file of at most limit bytes.
func readLimited(name string, limit int64) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: it is longer than %d bytes", name, limit)
	}
	return data, nil
}
