package identity

import (
	"context"

	hauberkv1 "github.com/hauberk-mesh/hauberk/api/gen/hauberk/v1"
)

// SetSign replaces the network.
func (r *Renewer) SetSign(sign func(context.Context, []byte) (*hauberkv1.SignResponse, error)) {
	r.sign = sign
}
