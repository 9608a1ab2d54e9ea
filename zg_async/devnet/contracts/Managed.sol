// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// One owner, one initialisation, one call at a time.
abstract contract Managed {
    address public owner;
    bool public initialized;
    uint256 private _entered;

    event OwnershipTransferred(address indexed previousOwner, address indexed newOwner);
    event Initialized(uint8 version);

    error AlreadyInitialized();
    error DirectDepositsDisabled();

    modifier onlyOwner() {
        require(msg.sender == owner, "Ownable: caller is not the owner");
        _;
    }

    modifier once() {
        if (initialized) revert AlreadyInitialized();
        initialized = true;
        _;
        emit Initialized(1);
    }

    modifier nonReentrant() {
        _enter();
        _;
        _entered = 1;
    }

    function transferOwnership(address newOwner) external onlyOwner {
        require(newOwner != address(0), "Ownable: new owner is the zero address");
        _setOwner(newOwner);
    }

    function renounceOwnership() external onlyOwner {
        _setOwner(address(0));
    }

    function _setOwner(address newOwner) internal {
        emit OwnershipTransferred(owner, newOwner);
        owner = newOwner;
    }

    /// For constructors: an implementation that nobody can initialise.
    function _lockForever() internal {
        initialized = true;
        emit Initialized(type(uint8).max);
    }

    function _enter() private {
        require(_entered != 2, "ReentrancyGuard: reentrant call");
        _entered = 2;
    }

    function _pay(address to, uint256 amount) internal returns (bool done) {
        (done,) = to.call{value: amount}("");
    }
}
