package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// push writes images below host/path, with the credentials that `docker login`
// left. Insecure allows plain HTTP and certificates that nobody vouches for.
func push(ctx context.Context, images []named, target string, insecure bool, step func(string) func()) ([]result, error) {
	options := []name.Option{name.StrictValidation}
	transport := remote.DefaultTransport
	if insecure {
		options = append(options, name.Insecure)
		base, ok := remote.DefaultTransport.(*http.Transport)
		if !ok {
			return nil, fmt.Errorf("the registry client's transport is a %T, not an http.Transport", remote.DefaultTransport)
		}
		clone := base.Clone()
		clone.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
		transport = clone
	}
	var results []result
	for _, n := range images {
		full := strings.TrimSuffix(target, "/") + strings.TrimPrefix(n.name, registryHost)
		tag, err := name.NewTag(full, options...)
		if err != nil {
			return nil, fmt.Errorf("-push wants host[:port][/path], got %q: %w", target, err)
		}
		done := step("push " + full)
		err = remote.Write(tag, n.image, remote.WithContext(ctx), remote.WithTransport(transport), remote.WithAuthFromKeychain(authn.DefaultKeychain))
		done()
		if err != nil {
			return nil, fmt.Errorf("push %s: %w", full, err)
		}
		digest, err := n.image.Digest()
		if err != nil {
			return nil, fmt.Errorf("digest of %s: %w", n.name, err)
		}
		results = append(results, result{Name: full, Digest: digest.String()})
	}
	return results, nil
}
