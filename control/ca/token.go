package ca

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/hauberk-mesh/hauberk/internal/identity"
	"github.com/hauberk-mesh/hauberk/internal/names"
)

// maxToken bounds a token, in bytes; the API server's are about 1 KiB.
const maxToken = 16 << 10

// Keys of what the API server says of a token that is bound to a pod; node-name
// since Kubernetes 1.32.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// TokenReviewer asks the API server what it says of a token for audience
// hauberk-ca. An error means that it could not be asked; a token that is no good
// is a status that says so.
type TokenReviewer interface {
	Review(ctx context.Context, token string) (authenticationv1.TokenReviewStatus, error)
}

// APIReviewer is the TokenReviewer of a real API server.
type APIReviewer struct {
	Client kubernetes.Interface
}

// Review creates a TokenReview.
func (r APIReviewer) Review(ctx context.Context, token string) (authenticationv1.TokenReviewStatus, error) {
	review, err := r.Client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{names.TokenAudience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.TokenReviewStatus{}, fmt.Errorf("token review: %w", err)
	}
	return review.Status, nil
}

// Refusals that differ in status code.
var (
	errUnauthenticated = errors.New("token is not valid")
	errForbidden       = errors.New("token is valid but gets no certificate")
)

// callerOf turns what the API server says of a token into whom a certificate
// for it names: the service account, the pod, and for node agents the node.
func callerOf(status authenticationv1.TokenReviewStatus, td spiffeid.TrustDomain) (identity.Peer, error) {
	if !status.Authenticated {
		return identity.Peer{}, fmt.Errorf("%w for audience %s", errUnauthenticated, names.TokenAudience)
	}
	// An API server that knows no audiences leaves them out: then the token is
	// for anybody, and so not for us.
	if !slices.Contains(status.Audiences, names.TokenAudience) {
		return identity.Peer{}, fmt.Errorf("%w for audience %s", errUnauthenticated, names.TokenAudience)
	}
	account, ok := strings.CutPrefix(status.User.Username, "system:serviceaccount:")
	namespace, serviceAccount, two := strings.Cut(account, ":")
	if !ok || !two || namespace == "" || serviceAccount == "" || strings.Contains(serviceAccount, ":") {
		return identity.Peer{}, fmt.Errorf("%w: it is not a service account's", errForbidden)
	}
	uid, err := extra(status.User, extraPodUID)
	if err != nil {
		return identity.Peer{}, err
	}
	if _, err := identity.PodSAN(uid); err != nil {
		return identity.Peer{}, fmt.Errorf("%w: %w", errForbidden, err)
	}
	if _, err := extra(status.User, extraPodName); err != nil {
		return identity.Peer{}, err
	}
	id, err := identity.WorkloadID(td, namespace, serviceAccount)
	if err != nil {
		return identity.Peer{}, fmt.Errorf("%w: %w", errForbidden, err)
	}
	peer := identity.Peer{ID: id, PodUID: uid}
	if id == identity.NodeID(td) {
		if peer.Node, err = extra(status.User, extraNodeName); err != nil {
			return identity.Peer{}, fmt.Errorf("%w (a node agent needs it; Kubernetes 1.32 or newer)", err)
		}
	}
	return peer, nil
}

// extra is the single value of a key.
func extra(user authenticationv1.UserInfo, key string) (string, error) {
	values := user.Extra[key]
	if len(values) != 1 || values[0] == "" {
		return "", fmt.Errorf("%w: it is not bound to a pod: %s is missing", errForbidden, key)
	}
	return values[0], nil
}

// tokenShaped says whether s can be a JWT at all, so that garbage never reaches
// the API server.
func tokenShaped(s string) bool {
	if len(s) == 0 || len(s) > maxToken || strings.Count(s, ".") != 2 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}
