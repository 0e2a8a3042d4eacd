package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// floorOptions is one of the two bare forwarders: what no Go proxy with mutual
// TLS can be cheaper than. It has no policy, no metrics, no protocol.
type floorOptions struct {
	Listen, Target           string // pairs of equal length, comma-separated
	Accept                   bool   // accept TLS and dial plain, else the reverse
	Cert, Key, CA, Name      string
	WithoutSessionResumption bool
}

func runFloor(ctx context.Context, o floorOptions) error {
	config, err := o.config()
	if err != nil {
		return err
	}
	listen, target := split(o.Listen), split(o.Target)
	if len(listen) != len(target) {
		return errors.New("floor: as many targets as listeners are needed")
	}
	var wg sync.WaitGroup
	for i := range listen {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", listen[i])
		if err != nil {
			return fmt.Errorf("floor: listen on %s: %w", listen[i], err)
		}
		defer context.AfterFunc(ctx, func() { l.Close() })()
		wg.Go(func() { acceptAll(l, func(c net.Conn) { o.forward(ctx, c, target[i], config) }) })
	}
	wg.Wait()
	return nil
}

func (o *floorOptions) config() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(o.Cert, o.Key)
	if err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	ca, err := os.ReadFile(o.CA)
	if err != nil {
		return nil, fmt.Errorf("floor: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("floor: %s holds no certificate", o.CA)
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, ClientCAs: roots, ServerName: o.Name,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true}
	if !o.WithoutSessionResumption {
		config.ClientSessionCache = tls.NewLRUClientSessionCache(64)
	}
	return config, nil
}

func (o *floorOptions) forward(ctx context.Context, in net.Conn, target string, config *tls.Config) {
	defer in.Close()
	var d net.Dialer
	out, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	if o.Accept {
		in = tls.Server(in, config)
	} else {
		out = tls.Client(out, config)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		copyOne(in, out)
	}()
	copyOne(out, in)
	<-done
}

func copyOne(dst, src net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				src.Close()
				return
			}
		}
		if errors.Is(err, io.EOF) {
			_ = dst.(interface{ CloseWrite() error }).CloseWrite()
			return
		}
		if err != nil {
			dst.Close()
			return
		}
	}
}
