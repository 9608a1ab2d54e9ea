// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {KeySet} from "./KeySet.sol";

/// Roles whose members can be listed, and an initialisation that happens once. The storage contracts' base.
abstract contract Roles {
    using KeySet for KeySet.Set;

    bytes32 public constant DEFAULT_ADMIN_ROLE = 0;

    mapping(bytes32 role => KeySet.Set) private _members;
    mapping(bytes32 role => bytes32) private _admins; // nothing but the default
    bool private _initialized;

    event Initialized(uint64 version);
    event RoleAdminChanged(bytes32 indexed role, bytes32 indexed previousAdminRole, bytes32 indexed newAdminRole);
    event RoleGranted(bytes32 indexed role, address indexed account, address indexed sender);
    event RoleRevoked(bytes32 indexed role, address indexed account, address indexed sender);

    error AccessControlBadConfirmation();
    error AccessControlUnauthorizedAccount(address account, bytes32 neededRole);
    error InvalidInitialization();
    error NotInitializing();

    modifier onlyRole(bytes32 role) {
        if (!hasRole(role, msg.sender)) revert AccessControlUnauthorizedAccount(msg.sender, role);
        _;
    }

    modifier once() {
        if (_initialized) revert InvalidInitialization();
        _initialized = true;
        _;
        emit Initialized(1);
    }

    function hasRole(bytes32 role, address account) public view returns (bool) {
        return _members[role].has(_word(account));
    }

    function getRoleAdmin(bytes32 role) external view returns (bytes32) {
        return _admins[role];
    }

    function getRoleMember(bytes32 role, uint256 index) external view returns (address) {
        return address(uint160(uint256(_members[role].words[index])));
    }

    function getRoleMemberCount(bytes32 role) external view returns (uint256) {
        return _members[role].size();
    }

    function grantRole(bytes32 role, address account) external onlyRole(DEFAULT_ADMIN_ROLE) {
        _grant(role, account);
    }

    function revokeRole(bytes32 role, address account) external onlyRole(DEFAULT_ADMIN_ROLE) {
        _revoke(role, account);
    }

    function renounceRole(bytes32 role, address callerConfirmation) external {
        if (callerConfirmation != msg.sender) revert AccessControlBadConfirmation();
        _revoke(role, callerConfirmation);
    }

    /// ERC-165: itself, access control (0x7965db0b), and its enumeration (0x5a05180f).
    function supportsInterface(bytes4 interfaceId) external view returns (bool) {
        return interfaceId == 0x01ffc9a7 || interfaceId == 0x7965db0b || interfaceId == 0x5a05180f;
    }

    function _grant(bytes32 role, address account) internal {
        if (_members[role].add(_word(account))) emit RoleGranted(role, account, msg.sender);
    }

    /// For constructors: an implementation that nobody can initialise.
    function _lockForever() internal {
        _initialized = true;
        emit Initialized(type(uint64).max);
    }

    function _revoke(bytes32 role, address account) private {
        if (_members[role].remove(_word(account))) emit RoleRevoked(role, account, msg.sender);
    }

    function _word(address account) private pure returns (bytes32) {
        return bytes32(uint256(uint160(account)));
    }
}
